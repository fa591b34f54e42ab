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
from chiron.cli.runner import EXIT_BAD_START, EXIT_FAILED, CliError
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
        self.last = 0
        """Number of the last result in the file; 0: none."""
        try:
            # A pipe or a device cannot be gone on with, only added to.
            self._regular = path.is_file() or not path.exists()
            made = os.O_RDWR | os.O_CREAT if self._regular else os.O_WRONLY
            self._file: BinaryIO = os.fdopen(os.open(path, made, 0o666), "r+b" if self._regular else "wb")
        except OSError as error:
            raise _unwritten(path, error, EXIT_BAD_START) from error
        if self._regular:
            try:
                self.last = self._take_up()
            except OSError as error:
                self._file.close()
                raise _unwritten(path, error, EXIT_BAD_START) from error
            except BaseException:
                self._file.close()
                raise

    def write(self, result: ItemResult) -> None:
        """Adds a result. Raises CliError, as does `flush`."""
        try:
            self._file.write(line_of_result(self._batch_id, result))
        except OSError as error:
            raise _unwritten(self.path, error) from error
        self.last = result.number

    def flush(self) -> None:
        """Hands what was written to the system."""
        try:
            self._file.flush()
        except OSError as error:
            raise _unwritten(self.path, error) from error

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._file:
                self._file.flush()
                if self._regular:
                    os.fsync(self._file.fileno())
        except OSError as failure:
            # What ends the command already says more than that the rest could not be written either.
            if error is None:
                raise _unwritten(self.path, failure) from failure

    def _take_up(self) -> int:
        line, end = self._last_line()
        number = self._number(line) if line else 0
        self._file.seek(end)
        torn = self._file.read(_BLOCK)
        # Nothing is removed but what this command has begun to write.
        beginning = _beginning(self._batch_id)
        if torn[: len(beginning)] != beginning[: len(torn)]:
            raise CliError(f"{self.path}: does not end with a result of a batch", EXIT_BAD_START)
        self._file.truncate(end)
        self._file.seek(end)
        return number

    def _number(self, line: bytes) -> int:
        try:
            found = json.loads(line)
            batch_id, number = found["batch_id"], int(found["number"])
        except (ValueError, TypeError, KeyError) as error:
            raise CliError(f"{self.path}: its last line is no result of a batch", EXIT_BAD_START) from error
        if batch_id != self._batch_id:
            raise CliError(f"{self.path}: holds results of batch {batch_id}", EXIT_BAD_START)
        return number

    def _last_line(self) -> tuple[bytes, int]:
        """The last line that has an end, and where it ends; none: empty, and the beginning of the file."""
        start = self._file.seek(0, os.SEEK_END)
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
        return b"", 0


def _beginning(batch_id: str) -> bytes:
    """How each line of a batch's results begins."""
    return f'{{"batch_id": {json.dumps(batch_id)}, "number": '.encode()


def _unwritten(path: Path, error: OSError, status: int = EXIT_FAILED) -> CliError:
    return CliError(f"{path}: {error.strerror or error}", status)


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
