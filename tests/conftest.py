"""Settings of the whole suite."""

from __future__ import annotations

import os

# Children are always replaced by another program; gRPC's fork handlers, which would let them go on with gRPC,
# can crash them before that when other threads are busy in gRPC. Read when grpc is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from hypothesis import settings

# In CI the examples follow from the tests alone, so that a red run is about the change; elsewhere they are
# new every time and go on searching.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
