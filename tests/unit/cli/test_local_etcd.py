"""Where a local cluster's etcd comes from, and the option that asks for it."""

from __future__ import annotations

import importlib.util

import pytest

from chiron.cli.main import _with_values
from chiron.cluster import StartError
from chiron.cluster.local_etcd import find_etcd


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
