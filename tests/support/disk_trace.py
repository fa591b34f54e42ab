"""What a process has written and synced, from a trace of its calls, and what a power cut would leave."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

CALLS = "openat,close,write,pwrite64,ftruncate,fsync,fdatasync,unlink,unlinkat"
SECTOR = 512

_LINE = re.compile(r"^(?:\[pid +)?(\d+)\]? +(.*)$")
_UNFINISHED = re.compile(r"^(.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(r"^<\.\.\. (\w+) resumed>(.*)$")
_CALL = re.compile(r"^(\w+)\((.*)\) += (-?\d+)")
_FD = re.compile(r"^(\d+)<([^>]*)>")


@dataclass(slots=True)
class Call:
    """A system call that has returned, in the order of returns."""

    name: str
    path: str
    data: bytes = b""
    offset: int = 0


def command(trace: Path, *program: str) -> list[str]:
    """Runs a program under strace, with its threads; every byte written is in the trace."""
    options = ["-f", "-yy", "-xx", "-s", "16777216", "-e", f"trace={CALLS}", "-e", "signal=none"]
    return ["strace", *options, "-o", str(trace), *program]


def read_calls(trace: Path) -> Iterator[Call]:
    """Calls that succeeded, on files with a name."""
    begun: dict[str, str] = {}
    with trace.open() as lines:
        for line in lines:
            found = _LINE.match(line.rstrip("\n"))
            if not found:
                continue
            thread, text = found.groups()
            if unfinished := _UNFINISHED.match(text):
                begun[thread] = unfinished.group(1)
                continue
            if resumed := _RESUMED.match(text):
                text = begun.pop(thread, "") + resumed.group(2)
            if call := _parse(text):
                yield call


def _parse(text: str) -> Call | None:
    found = _CALL.match(text)
    if not found or int(found.group(3)) < 0:
        return None
    name, arguments = found.group(1), found.group(2)
    if name in ("openat", "close"):
        return None
    if name in ("unlink", "unlinkat"):
        return Call(name, _text(arguments.split('"')[1]).decode())
    file = _FD.match(arguments)
    if not file:
        return None
    path = _text(file.group(2)).decode(errors="replace")
    if name in ("write", "pwrite64"):
        data = _text(arguments.split('"')[1])
        offset = int(arguments.rsplit(",", 1)[1]) if name == "pwrite64" else 0
        return Call(name, path, data, offset)
    if name == "ftruncate":
        return Call(name, path, offset=int(arguments.rsplit(",", 1)[1]))
    return Call(name, path)


def _text(escaped: str) -> bytes:
    if "\\x" not in escaped:
        return escaped.encode()
    return bytes.fromhex(escaped.replace("\\x", ""))


@dataclass(slots=True)
class _File:
    synced: bytearray = field(default_factory=bytearray)
    pending: list[Call] = field(default_factory=list)

    def sync(self) -> None:
        for call in self.pending:
            _apply(self.synced, call)
        self.pending.clear()


def _apply(content: bytearray, call: Call) -> None:
    if call.name == "ftruncate":
        del content[call.offset :]
        content.extend(bytes(call.offset - len(content)))
        return
    end = call.offset + len(call.data)
    content.extend(bytes(max(0, end - len(content))))
    content[call.offset : end] = call.data


class Disk:
    """The files of a folder as far as they have been synced, and what was written since.

    What a call writes is on the disk once an fsync of its file has returned, and not before; of what was
    written since, a power cut may leave any sectors and lose any others.
    """

    def __init__(self, prefix: str) -> None:
        """`prefix`: of the paths of the files that count."""
        self._prefix = prefix
        self._files: dict[str, _File] = {}
        self.folder_synced = False

    def take(self, call: Call) -> None:
        """The next call of the trace."""
        if call.path == str(Path(self._prefix).parent) and call.name in ("fsync", "fdatasync"):
            self.folder_synced = True
        if not call.path.startswith(self._prefix):
            return
        if call.name.startswith("unlink"):
            self._files.pop(call.path, None)
            return
        file = self._files.setdefault(call.path, _File())
        if call.name in ("fsync", "fdatasync"):
            file.sync()
        else:
            file.pending.append(call)

    def unsynced(self, path: str) -> bool:
        """Whether something was written to the file since it was synced."""
        return bool(self._files[path].pending)

    def save(self, folder: Path, rng: random.Random | None = None) -> None:
        """What a power cut now leaves: nothing that is not synced, or (with `rng`) any of its sectors."""
        for path, file in self._files.items():
            content = bytearray(file.synced)
            for call in file.pending if rng else ():
                _apply_some(content, call, rng)
            (folder / Path(path).name).write_bytes(content)


def _apply_some(content: bytearray, call: Call, rng: random.Random | None) -> None:
    assert rng is not None
    if call.name == "ftruncate":
        if rng.random() < 0.5:
            _apply(content, call)
        return
    for start in range(0, len(call.data), SECTOR):
        if rng.random() < 0.5:
            part = Call("pwrite64", call.path, call.data[start : start + SECTOR], call.offset + start)
            _apply(content, part)
