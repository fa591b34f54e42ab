from __future__ import annotations

import os

import pytest

from tests.support.chiron_command import chiron, marked_processes

MARK = f"demo-{os.getpid()}"


@pytest.mark.timeout(150)
async def test_nothing_fails_while_a_worker_the_leader_and_an_agent_are_killed() -> None:
    result = await chiron("demo", "--duration=8", "--seed=3", "--no-live", CHIRON_TEST_RUN=MARK)

    assert result.status == 0, result.stderr
    assert result.stdout.count("\n") == 1
    figures = result.json()
    assert figures["requests"] == figures["interactive"]["requests"] + figures["batch"]["requests"]
    assert figures["interactive"]["finished"] > 0
    assert figures["batch"]["finished"] > 0
    assert figures["failed"] == 0
    assert figures["resumed"] >= 1
    assert (figures["killed"], figures["restarted"]) == (1, 1)
    assert (figures["agents_killed"], figures["leaders_killed"]) == (1, 1)
    assert 0 < figures["ttft_p50_ms"] <= figures["ttft_p99_ms"]
    assert figures["itl_p50_ms"] > 0
    assert figures["tokens_per_s"] > 0
    assert figures["retried"] >= 0
    assert figures["seed"] == 3
    assert "SIGKILL" in result.stderr
    assert marked_processes(MARK) == {}
