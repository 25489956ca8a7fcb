"""gRPC over HTTP/2 for the inference road: requests are read into the memory they are used from."""
