"""The table on disk is whole, private, or plainly refused."""

from __future__ import annotations

import asyncio
import logging
import stat
from pathlib import Path

import pytest

from chiron.auth.keys import KeyRing
from chiron.internal.v1 import control_pb2, router_pb2
from services.router.table_file import TableFileError, TableKeeper, read_table, write_table
from tests.support.wait import eventually


def stored(epoch: int = 1, *, keys: bool = False) -> router_pb2.StoredRoutingTable:
    return router_pb2.StoredRoutingTable(
        schema_version=1,
        table=control_pb2.RoutingTable(
            epoch=epoch, term=3, models=[control_pb2.RoutedModel(name=f"m{i}") for i in range(20)]
        ),
        keys=KeyRing.draw().to_message() if keys else None,
    )


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "table"
    kept = stored(keys=True)
    write_table(path, kept)
    assert read_table(path) == kept


def test_no_file_is_no_table(tmp_path: Path) -> None:
    assert read_table(tmp_path / "table") is None


def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.touch(mode=0o644)
    write_table(path, stored(keys=True))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_keys_that_others_could_read_are_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "table"
    write_table(path, stored(keys=True))
    path.chmod(0o640)
    found = read_table(path)
    assert found is not None
    assert found.table == stored().table
    assert not found.HasField("keys")
    assert str(path) in caplog.text


@pytest.mark.parametrize("cut", [0, 5, 30, 60, -1])
def test_a_file_that_is_cut_short_is_refused_by_its_name(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "table"
    write_table(path, stored())
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(TableFileError, match=f"{path} is damaged, or no routing table"):
        read_table(path)


def test_any_single_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "table"
    write_table(path, stored())
    sound = path.read_bytes()
    for index in range(len(sound)):
        path.write_bytes(sound[:index] + bytes([sound[index] ^ 0x10]) + sound[index + 1 :])
        with pytest.raises(TableFileError):
            read_table(path)


def test_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table"
    later = stored()
    later.schema_version = 2
    write_table(path, later)
    with pytest.raises(TableFileError, match="has version 2; this router reads 1"):
        read_table(path)


def test_what_cannot_be_read_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(TableFileError, match=f"cannot read {tmp_path}"):
        read_table(tmp_path)


def test_a_writer_that_died_in_its_midst_leaves_the_old_file_and_does_not_hinder_the_next(
    tmp_path: Path,
) -> None:
    path = tmp_path / "table"
    write_table(path, stored(1))
    (tmp_path / "table.new").write_bytes(b"half a")
    found = read_table(path)
    assert found is not None
    assert found.table.epoch == 1
    write_table(path, stored(2))
    found = read_table(path)
    assert found is not None
    assert found.table.epoch == 2


async def test_many_changes_are_one_write_of_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, epoch = tmp_path / "table", 0
    keeper = TableKeeper(path, lambda: stored(epoch))
    running = asyncio.create_task(keeper.run())
    for epoch in range(1, 1001):  # noqa: B007 - the keeper reads it
        keeper.changed()
        await asyncio.sleep(0)
    await eventually(lambda: keeper.writes == 1)
    # The rest waits for the pause, or for the end.
    keeper.changed()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    found = await asyncio.to_thread(read_table, path)
    assert found is not None
    assert found.table.epoch == 1000
    assert keeper.writes == 2


async def test_a_disk_that_takes_nothing_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.router.table_file._PAUSE_S", 0.001)
    blocked = tmp_path / "file"
    blocked.touch()
    made = 0

    def make() -> router_pb2.StoredRoutingTable:
        nonlocal made
        made += 1
        return stored()

    keeper = TableKeeper(blocked / "table", make)
    with caplog.at_level(logging.WARNING):
        running = asyncio.create_task(keeper.run())
        for target in (1, 2, 3):
            keeper.changed()
            await eventually(lambda target=target: made >= target)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    [warning] = [record.getMessage() for record in caplog.records]
    assert str(blocked / "table") in warning
    assert keeper.writes == 0
