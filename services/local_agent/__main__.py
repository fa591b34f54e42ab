"""Runs a local agent: `python -m services.local_agent [--config FILE] [--set key=value]...`."""

from __future__ import annotations

import sys

from chiron.service import run_service
from services.local_agent.app import serve
from services.local_agent.config import AgentConfig

if __name__ == "__main__":
    sys.exit(run_service("agent", AgentConfig, serve))
