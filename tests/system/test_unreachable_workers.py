"""A client that reaches the router and not the workers is served through the router."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.network import HIDDEN_ADDRESS, SERVER_ADDRESS, TwoHosts, on, require_tools

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def hosts() -> Iterator[TwoHosts]:
    require_tools()
    with TwoHosts() as hosts:
        yield hosts


def test_the_sdk_falls_back_to_the_proxy_and_remembers(hosts: TwoHosts, tmp_path: Path) -> None:
    module = [sys.executable, "-m", "tests.system.serve"]
    serve = on(hosts.server, *module, SERVER_ADDRESS, HIDDEN_ADDRESS, str(tmp_path))
    with subprocess.Popen(
        serve, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line, "the cluster did not start"
        router = json.loads(line)["address"]
        ask = on(hosts.client, sys.executable, "-m", "tests.system.ask", router)
        run = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        server.communicate("", timeout=60)
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    assert seen["tokens"] == [5, 5]
    assert seen["failed"] == 0
    assert seen["fallbacks"] == 2
    # The first request pays for finding out, with the connect timeout of one second; the second does not.
    assert seen["ttft_ms"][0] > 1000 > seen["ttft_ms"][1]
    assert server.returncode == 0
