"""The worker: one engine serving one model, behind gRPC."""
