"""What every service process does at start and at stop."""

from chiron.service.main import announce, run_service

__all__ = ["announce", "run_service"]
