"""`python -m services.router`."""

from __future__ import annotations

import sys

from chiron.service import run_service
from services.router.app import serve
from services.router.config import RouterConfig

if __name__ == "__main__":
    sys.exit(run_service("router", RouterConfig, serve))
