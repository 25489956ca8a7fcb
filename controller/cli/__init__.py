"""fleetctl: a remote gRPC client, one file per noun. Imports no other room."""
