"""gRPC servers: convert, servicers, error table, interceptors. Decides nothing."""
