"""A whole Chiron cluster of real processes on this machine, and the calls that an operator makes."""

import os

# Read when gRPC starts: its handlers for forks can crash a child that is started while gRPC's threads work.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from chiron.cluster.admin import AddressError, AdminError, ClusterAdmin
from chiron.cluster.local import LocalCluster, ModelFailedError
from chiron.cluster.process import ServiceProcess, StartError
from chiron.cluster.specs import read_model_files, read_models

__all__ = [
    "AddressError",
    "AdminError",
    "ClusterAdmin",
    "LocalCluster",
    "ModelFailedError",
    "ServiceProcess",
    "StartError",
    "read_model_files",
    "read_models",
]
