"""Folders of control sockets outside the state folder: whoever makes one removes it, or somebody later."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest

from chiron.cluster import sweeper
from services.local_agent import socket_folders
from services.local_agent.socket_folders import STALE_S, held, remove_left, remove_stale, short_folder


def made(folder: Path, *, old: bool = False) -> Path:
    folder.mkdir(mode=0o700)
    if old:
        long_ago = time.time() - STALE_S - 60
        os.utime(folder, (long_ago, long_ago))
    return folder


def test_an_agent_leaves_no_short_folder_behind(tmp_path: Path) -> None:
    state = tmp_path / "state"
    folder = made(short_folder(state, tmp_path))
    with held(folder, state):
        assert folder.is_dir()
    assert not folder.exists()
    with pytest.raises(RuntimeError, match="stopped"), held(made(folder), state):
        raise RuntimeError("stopped")
    assert not folder.exists()


def test_sockets_that_are_served_and_folders_of_ones_own_stay(tmp_path: Path) -> None:
    state = tmp_path / "state"
    folder, own = made(short_folder(state, tmp_path)), made(tmp_path / "sockets")
    (folder / "a.sock").touch()
    for one in (folder, own):
        with held(one, state):
            pass
        assert one.is_dir()


def test_what_a_killed_agent_has_left_goes_with_its_sockets(tmp_path: Path) -> None:
    state = tmp_path / "state"
    folder = made(short_folder(state, tmp_path))
    for name in ("a.sock", "b.sock"):
        (folder / name).touch()
    remove_left(state, tmp_path)
    assert not folder.exists()
    remove_left(state, tmp_path)


def test_only_stale_folders_go(tmp_path: Path) -> None:
    used, held_one = (
        made(short_folder(tmp_path / "1", tmp_path)),
        made(short_folder(tmp_path / "2", tmp_path)),
    )
    young, stale = (
        made(short_folder(tmp_path / "3", tmp_path)),
        made(short_folder(tmp_path / "4", tmp_path), old=True),
    )
    others = [made(tmp_path / name, old=True) for name in ("chiron-kv-x1", f"chiron-{os.getuid()}-x", "else")]
    link = tmp_path / f"chiron-{os.getuid()}-0123456789abcdef"
    link.symlink_to(made(tmp_path / "target", old=True), target_is_directory=True)
    (used / "a.sock").touch()
    long_ago = time.time() - STALE_S - 60
    for one in (used, held_one):
        os.utime(one, (long_ago, long_ago))
    os.utime(link, (long_ago, long_ago), follow_symlinks=False)
    descriptor = os.open(held_one, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        remove_stale(tmp_path)
    finally:
        os.close(descriptor)
    assert not stale.exists()
    assert all(one.exists() for one in (used, held_one, young, link, tmp_path / "target", *others))
    remove_stale(tmp_path)
    assert not held_one.exists(), "its agent is gone by now"


def test_the_sweeper_removes_what_its_dead_agents_have_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = made(tmp_path / "root")
    monkeypatch.setattr(sweeper, "remove_left", lambda state: remove_left(state, root))
    monkeypatch.setattr(sweeper, "remove_stale", lambda: remove_stale(root))
    node = made(tmp_path / "node-1")
    (node / "lock").touch()
    folder, stale = made(short_folder(node, root)), made(short_folder(tmp_path / "gone", root), old=True)
    (folder / "a.sock").touch()
    sweeper.sweep(tmp_path)
    assert not folder.exists()
    assert not stale.exists()


def test_the_root_has_room_for_the_name_of_a_socket() -> None:
    folder = short_folder(Path("/a/state"), socket_folders.ROOT)
    assert len(os.fsencode(folder / f"{'0' * 16}.sock")) <= 107
