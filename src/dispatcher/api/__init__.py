"""gRPC in: the server and one thin servicer per service."""
