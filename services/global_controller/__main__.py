"""`python -m services.global_controller`: runs the controller until SIGTERM."""

import sys

from chiron.service import run_service
from services.global_controller.app import serve
from services.global_controller.config import ControllerConfig

if __name__ == "__main__":
    sys.exit(run_service("controller", ControllerConfig, serve))
