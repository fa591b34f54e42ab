"""`chiron batch results`: writes results as JSON lines, and goes on with what a file holds."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from chiron.cli.batch.bar import say
from chiron.cli.batch.connect import connect
from chiron.cli.batch.telling import result_json
from chiron.cli.runner import EXIT_BAD_START, CliError
from chiron.client import Client, ItemResult

_BLOCK = 1 << 16


class ResultsFile:
    """A file of results; what it holds when it is opened is kept, up to the last whole line."""

    def __init__(self, path: Path, batch_id: str) -> None:
        """Opens or makes the file. Raises CliError for one that holds something else.

        Args:
            path: of the file.
            batch_id: of the batch whose results it holds.
        """
        self.path = path
        self._batch_id = batch_id
        try:
            self._file: BinaryIO = open(path, "r+b" if path.exists() else "x+b")  # noqa: SIM115  # Closed by `__exit__`.
        except OSError as error:
            raise CliError(f"{path}: {error.strerror}", EXIT_BAD_START) from error
        try:
            self.last = self._take_up()
            """Number of the last result in the file; 0: none."""
        except BaseException:
            self._file.close()
            raise

    def write(self, result: ItemResult) -> None:
        """Adds a result."""
        self._file.write(line_of_result(self._batch_id, result))
        self.last = result.number

    def flush(self) -> None:
        """Hands what was written to the system."""
        self._file.flush()

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    def _take_up(self) -> int:
        line, end = self._last_line()
        self._file.truncate(end)
        self._file.seek(end)
        if not line:
            return 0
        try:
            found = json.loads(line)
            batch_id, number = found["batch_id"], int(found["number"])
        except (ValueError, TypeError, KeyError) as error:
            raise CliError(f"{self.path}: its last line is no result of a batch", EXIT_BAD_START) from error
        if batch_id != self._batch_id:
            raise CliError(f"{self.path}: holds results of batch {batch_id}", EXIT_BAD_START)
        return number

    def _last_line(self) -> tuple[bytes, int]:
        """The last line that has an end, and where it ends."""
        start = end = self._file.seek(0, os.SEEK_END)
        tail = b""
        while start:
            step = min(_BLOCK, start)
            start -= step
            self._file.seek(start)
            tail = self._file.read(step) + tail
            whole = tail.rfind(b"\n")
            if whole < 0:
                continue
            before = tail.rfind(b"\n", 0, whole)
            if before >= 0 or not start:
                return tail[before + 1 : whole], start + whole + 1
        if end and b"\n" not in tail and not tail.startswith(b"{"):
            raise CliError(f"{self.path}: is no file of results", EXIT_BAD_START)
        return b"", 0


def line_of_result(batch_id: str, result: ItemResult) -> bytes:
    """A result as it is written."""
    return json.dumps(result_json(batch_id, result), ensure_ascii=False).encode() + b"\n"


async def fetch_results(
    routers: str, batch_id: str, output: Path | None, *, follow: bool, after: int, custom_id: str
) -> int:
    """Writes results to stdout or a file."""
    if output is not None and custom_id:
        raise CliError("--custom-id prints one result: it takes no --output", EXIT_BAD_START)
    async with connect(routers) as client:
        if output is None:
            found = False
            async with aclosing(
                client.batch.results(batch_id, after=after, follow=follow, custom_id=custom_id)
            ) as results:
                async for result in results:
                    found = True
                    sys.stdout.buffer.write(line_of_result(batch_id, result))
                    if follow:
                        sys.stdout.buffer.flush()
            if custom_id and not found:
                raise CliError(f"batch {batch_id} has no result of item {custom_id!r}")
            return 0
        with ResultsFile(output, batch_id) as file:
            if after and file.last and after != file.last:
                raise CliError(
                    f"{output}: ends with result {file.last}: leave --after out",
                    EXIT_BAD_START,
                )
            file.last = file.last or after
            await write_results(client, batch_id, file, follow=follow)
    say(f"{output}: results up to {file.last}")
    return 0


async def write_results(client: Client, batch_id: str, file: ResultsFile, *, follow: bool) -> None:
    """Adds to the file what it does not hold yet."""
    results: AsyncGenerator[ItemResult, None] = client.batch.results(batch_id, after=file.last, follow=follow)
    async with aclosing(results):
        async for result in results:
            file.write(result)
            if follow:
                file.flush()
