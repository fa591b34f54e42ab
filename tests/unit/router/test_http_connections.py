"""How many connections the HTTP door takes with the files that its process may open."""

from __future__ import annotations

import resource

import pytest

from services.router.http.server import room_for

UNLIMITED = resource.RLIM_INFINITY


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch):
    """Sets the limits that the process finds, and tells what it makes of them."""
    limits = [0, 0]

    def found(soft: int, hard: int) -> list[int]:
        limits[:] = soft, hard
        return limits

    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.__setitem__(slice(None), new))
    return found


def test_the_process_allows_itself_the_files_that_it_needs(files) -> None:
    limits = files(1024, 1_048_576)
    assert room_for(10_000) == 10_000
    assert limits == [14_096, 1_048_576]


def test_where_it_may_not_there_are_fewer_connections_and_files_for_other_work(
    files, caplog: pytest.LogCaptureFixture
) -> None:
    files(1024, 4096)
    assert room_for(10_000) == 2048
    assert "at most 2048 HTTP connections" in caplog.text


@pytest.mark.parametrize("limits", [(UNLIMITED, UNLIMITED), (1_000_000, 1_000_000)])
def test_limits_that_are_high_enough_stay(files, limits: tuple[int, int]) -> None:
    now = files(*limits)
    assert room_for(10_000) == 10_000
    assert tuple(now) == limits
