"""`python -m services.worker`: one engine behind gRPC."""

from __future__ import annotations

import sys

from chiron.service import run_service
from services.worker.app import serve
from services.worker.config import WorkerConfig

if __name__ == "__main__":
    sys.exit(run_service("worker", WorkerConfig, serve))
