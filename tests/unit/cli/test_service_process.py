"""Services are real processes here: small modules written for each test."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from chiron.cluster import ServiceProcess, StartError
from tests.support.python_path import python_path
from tests.support.wait import eventually

ANNOUNCE = (
    "import json, sys\n"
    'print(json.dumps({"service": "s", "address": "h:1", "arguments": sys.argv[1:]}), flush=True)'
)
WAIT = "import signal; signal.pause()"


async def start(tmp_path: Path, source: str, *, within_s: float = 30.0, **settings: str) -> ServiceProcess:
    (tmp_path / "small_service.py").write_text(source)
    return await ServiceProcess.start(
        "small",
        "small_service",
        log=tmp_path / "logs" / "small.log",
        settings=settings,
        config=tmp_path / "c.toml",
        environ={"PYTHONPATH": python_path(tmp_path)},
        within_s=within_s,
    )


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


async def test_start_returns_what_the_service_announced_and_passes_its_settings(tmp_path: Path) -> None:
    service = await start(tmp_path, f"{ANNOUNCE}\n{WAIT}", listen="127.0.0.1:0")
    try:
        assert service.announced["address"] == "h:1"
        assert service.announced["arguments"] == [
            "--config",
            str(tmp_path / "c.toml"),
            "--set",
            "listen=127.0.0.1:0",
        ]
        assert os.getsid(service.pid) == service.pid
    finally:
        await service.stop(10.0)


async def test_stop_asks_first(tmp_path: Path) -> None:
    # The signal may come while the announcement is being printed, when nothing else can be.
    end = "lambda *_: (os.write(1, b'bye\\n'), os._exit(0))"
    on_term = f"import os, signal\nsignal.signal(signal.SIGTERM, {end})"
    source = f"{on_term}\n{ANNOUNCE}\n{WAIT}"
    service = await start(tmp_path, source)

    assert await service.stop(20.0)

    assert await service.wait() == 0
    assert "bye" in service.log.read_text()


async def test_a_service_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    deaf = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)"
    source = f"{deaf}\n{ANNOUNCE}\nwhile True: signal.pause()"
    service = await start(tmp_path, source)

    assert not await service.stop(0.2)

    assert await service.wait() == -signal.SIGKILL


async def test_a_refused_start_is_the_service_s_own_line(tmp_path: Path) -> None:
    lines = "print('noise', file=sys.stderr); print('error: unknown key x', file=sys.stderr)"
    source = f"import sys\n{lines}\nsys.exit(2)"

    with pytest.raises(StartError) as caught:
        await start(tmp_path, source)

    assert str(caught.value) == "small: unknown key x"
    assert caught.value.bad_start


async def test_a_crash_at_start_shows_the_last_log_lines(tmp_path: Path) -> None:
    with pytest.raises(StartError) as caught:
        await start(tmp_path, "for n in range(99): print('line', n)\nraise RuntimeError('no luck')")

    message = str(caught.value)
    assert message.startswith("small ended at start with status 1; last lines of ")
    assert message.endswith("RuntimeError: no luck")
    assert not caught.value.bad_start


async def test_a_service_that_stays_silent_is_ended(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    source = (
        f"import os\nfrom pathlib import Path\nPath({str(pid_file)!r}).write_text(str(os.getpid()))\n{WAIT}"
    )

    with pytest.raises(StartError, match=r"small did not announce itself within 3 s"):
        await start(tmp_path, source, within_s=3.0)

    assert is_gone(int(pid_file.read_text()))


async def test_services_end_when_their_starter_is_killed(tmp_path: Path) -> None:
    (tmp_path / "small_service.py").write_text(f"{ANNOUNCE}\n{WAIT}")
    starter = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        "from chiron.cluster import ServiceProcess\n"
        "async def main():\n"
        "    folder = Path(sys.argv[1])\n"
        "    service = await ServiceProcess.start('small', 'small_service', log=folder / 'log',\n"
        "        settings={}, environ={'PYTHONPATH': sys.argv[2]})\n"
        "    print(service.pid, flush=True)\n"
        "    await service.wait()\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", starter, str(tmp_path), python_path(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    service_pid = int(await process.stdout.readline())
    assert not is_gone(service_pid)

    process.kill()
    await process.wait()

    await eventually(lambda: is_gone(service_pid), what="the service ends after its starter")
