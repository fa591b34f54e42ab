"""What a worker is started with: command line, environment, files, log."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from google.protobuf import json_format

from chiron.config import ConfigError
from chiron.telemetry.decisions import PARENT_VARIABLE
from chiron.v1 import types_pb2
from services.local_agent.config import AgentConfig
from services.local_agent.desired import Want
from services.local_agent.records import replace_file
from services.local_agent.socket_folders import short_folder, short_hash

_LOGS_KEPT = 4
_TAIL_BYTES = 8192
_TAIL_LINES = 4
_TAIL_CHARACTERS = 600
_SOCKET_PATH_MAX = 107


def worker_command(
    config: AgentConfig, want: Want, *, incarnation: int, port: int, spec_file: Path, socket: Path
) -> list[str]:
    """The command line of one worker."""
    settings: dict[str, object] = {
        "instance_id": want.instance_id,
        "incarnation": incarnation,
        "spec_file": spec_file,
        "spec_version": want.spec_version,
        "role": role_name(want.role),
        "listen": f"{config.host}:{port}",
        "socket": socket,
    }
    if config.advertise_host:
        settings["advertise_host"] = config.advertise_host
    if config.worker_cert is not None and config.worker_key is not None:
        settings |= {
            "tls.ca": config.tls.ca,
            "tls.cert": config.worker_cert,
            "tls.key": config.worker_key,
            "tls.mutual": str(config.tls.mutual).lower(),
        }
    command = [config.worker_python or sys.executable, "-m", "services.worker"]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    return command


def worker_environ(
    config: AgentConfig, visible_devices: str, environ: Mapping[str, str], trace_parent: str = ""
) -> dict[str, str]:
    """The agent's own environment, the devices, and `worker_env` on top.

    trace_parent: W3C context of the decision that starts the worker; empty: it has none.
    """
    added = dict(item.split("=", 1) for item in config.worker_env)
    traced = {PARENT_VARIABLE: trace_parent} if trace_parent else {}
    return {**environ, "CUDA_VISIBLE_DEVICES": visible_devices, **traced, **added}


def role_name(role: types_pb2.Role.ValueType) -> str:
    """`interactive`, `mixed` or `batch`."""
    return types_pb2.Role.Name(role).removeprefix("ROLE_").lower()


def prepare_files(folder: Path, socket: Path, want: Want) -> tuple[Path, Path]:
    """Writes the spec and opens a new log in the instance's folder; returns both. Raises OSError."""
    folder.mkdir(exist_ok=True, mode=0o700)
    socket.unlink(missing_ok=True)
    spec_file, log = write_spec(folder, want), rotate_log(folder)
    log.touch(mode=0o600)
    return spec_file, log


def write_spec(folder: Path, want: Want) -> Path:
    """Writes the model's spec as protobuf JSON and returns the file."""
    path = folder / "spec.json"
    replace_file(path, json_format.MessageToJson(want.spec, preserving_proto_field_name=True))
    return path


def rotate_log(folder: Path) -> Path:
    """Sets the last start's log aside (`worker.log.1` is the newest of the old ones); returns the new one."""
    log = folder / "worker.log"
    if log.exists():
        log.replace(_next_old_log(log))
    return log


def bound_log(log: Path, most_bytes: int) -> None:
    """Sets aside what a running worker has written once it is more than `most_bytes`.

    The worker goes on appending to the same file, which is copied and emptied; a line that it writes between
    the two is lost.
    """
    with contextlib.suppress(FileNotFoundError), log.open("rb+") as file:
        if os.fstat(file.fileno()).st_size > most_bytes:
            with _next_old_log(log).open("wb") as copy:
                shutil.copyfileobj(file, copy)
            file.truncate(0)


def _next_old_log(log: Path) -> Path:
    """`worker.log.1`, free to be written: the older ones have moved on by one and the oldest is gone."""
    for number in range(_LOGS_KEPT - 1, 1, -1):
        newer = log.with_name(f"{log.name}.{number - 1}")
        if newer.exists():
            newer.replace(log.with_name(f"{log.name}.{number}"))
    return log.with_name(f"{log.name}.1")


def log_tail(log: Path) -> str:
    """The last lines of a worker's log on one line; empty when there are none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-_TAIL_LINES:])[-_TAIL_CHARACTERS:]


def socket_folder(configured: Path | None, state_dir: Path) -> Path:
    """The folder of the control sockets, made with mode 0700.

    A Unix socket's path holds at most 107 bytes, so a deep state folder has its sockets under /tmp, in a
    folder of this user that is named after the state folder. Raises ConfigError when it cannot be used.
    """
    folder = configured or state_dir / "sockets"
    if configured is None and not _fits(folder):
        folder = short_folder(state_dir)
    if not _fits(folder):
        raise ConfigError(f"socket_dir: {folder} is too long for a Unix socket ({_SOCKET_PATH_MAX} bytes)")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"socket_dir: cannot use {folder}: {error.strerror}") from error
    if folder.stat().st_uid != os.getuid():
        raise ConfigError(f"socket_dir: {folder} belongs to another user")
    return folder


def socket_path(folder: Path, instance_id: str) -> Path:
    """The control socket of an instance; short, because a Unix socket's path is."""
    return folder / f"{short_hash(instance_id)}.sock"


def _fits(folder: Path) -> bool:
    return len(os.fsencode(socket_path(folder, ""))) <= _SOCKET_PATH_MAX
