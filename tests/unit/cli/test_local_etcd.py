"""Where a local cluster's etcd comes from, and the option that asks for it."""

from __future__ import annotations

import importlib.util

import pytest

from chiron.cli.main import _with_values
from chiron.cluster import StartError
from chiron.cluster.local_etcd import cause_in, find_etcd


def test_without_a_binary_the_error_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        StartError, match=r"no etcd is installed: .*apt install etcd-server.*--etcd HOST:PORT"
    ):
        find_etcd()


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        (["up", "--etcd"], ["up", "--etcd="]),
        (["up", "--etcd", "--controllers", "3"], ["up", "--etcd=", "--controllers", "3"]),
        (["up", "--etcd", "a:1,b:2"], ["up", "--etcd", "a:1,b:2"]),
        (["up", "--etcd=a:1"], ["up", "--etcd=a:1"]),
        (["status"], ["status"]),
    ],
)
def test_etcd_may_stand_without_an_address(given: list[str], parsed: list[str]) -> None:
    assert _with_values(given) == parsed


def test_the_cause_of_an_end_is_found_above_the_trace_that_follows_it() -> None:
    log = (
        '{"level":"warn","msg":"slow disk"}\n'
        '{"level":"panic","msg":"failed to create WAL","error":"no space left on device"}\n'
        "panic: failed to create WAL\n\ngoroutine 1 [running]:\n\tgo.uber.org/zap/logger.go:227 +0x85\n"
    )
    assert cause_in(log) == "failed to create WAL: no space left on device"
    assert cause_in("listen tcp 127.0.0.1:1: bind: address already in use\n17\n") == ""
