from __future__ import annotations

import os

import pytest

from tests.support.chiron_command import chiron, marked_processes

MARK = f"demo-vllm-{os.getpid()}"


@pytest.mark.vllm
@pytest.mark.timeout(600)
async def test_a_real_model_answers_through_the_whole_path() -> None:
    result = await chiron("demo", "--engine=vllm", "--no-live", CHIRON_TEST_RUN=MARK)

    assert result.status == 0, result.stderr
    answer, line = result.stdout.splitlines()
    assert "Paris" in answer
    figures = result.json()
    assert line
    assert (figures["requests"], figures["failed"], figures["engine"]) == (1, 0, "vllm")
    assert figures["ttft_p50_ms"] > 0
    assert figures["tokens"] > 1
    assert marked_processes(MARK) == {}
