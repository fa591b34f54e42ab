"""What every Chiron gRPC server and its callers share: errors, servers, channels."""
