"""What every service process does at start and at stop."""

import os

# Read when gRPC is imported: its own log would add lines to each error that a service reports in one.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# gRPC's handlers for forks can crash a child that is started while gRPC's threads work.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from chiron.service.main import announce, run_service

__all__ = ["announce", "run_service"]
