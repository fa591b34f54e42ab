"""`chiron batch` as its users run it, against BatchService on a real port and queue."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from chiron.batch.records import BatchState
from chiron.cli import runner
from chiron.cli.batch.commands import app
from tests.support.batch_service import BatchService, batch_service
from tests.support.chiron_command import Result
from tests.support.wait import eventually


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[BatchService]:
    async with batch_service(tmp_path) as running:
        yield running


def batch_file(folder: Path, count: int, **changed: Any) -> Path:
    path = folder / "in.jsonl"
    lines = [
        json.dumps({"custom_id": f"q{n}", "model": "toy", "prompt": f"question {n}", "max_tokens": 4})
        for n in range(count)
    ]
    for place, line in changed.items():
        lines[int(place.removeprefix("line")) - 1] = line
    path.write_text("\n".join(lines) + "\n")
    return path


Run = Callable[..., Awaitable[Result]]


@pytest.fixture
async def run(
    service: BatchService,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> Run:
    """Runs a command in this process: to start one costs seconds on a busy machine."""

    async def command(*arguments: object, stdin: str = "") -> Result:
        works: list[Coroutine[Any, Any, int]] = []
        monkeypatch.setattr(runner, "execute", works.append)
        (tmp_path / "stdin").write_text(stdin)
        with (tmp_path / "stdin").open() as given:
            monkeypatch.setattr(sys, "stdin", given)
            app([*map(str, arguments), f"--router={service.address}"], standalone_mode=False)
            try:
                status, told = await works.pop(), ""
            except runner._EXPECTED as error:
                status, told = runner._status(error), f"error: {error}\n"
        sys.stdout.flush()
        out, err = capfdbinary.readouterr()
        return Result(status, out.decode(), err.decode() + told)

    return command


async def started(service: BatchService, *arguments: object) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from chiron.cli.main import main; main()",
        "batch",
        *map(str, arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "CHIRON_ROUTER": service.address},
    )


def numbers(path: Path) -> list[int]:
    return [json.loads(line)["number"] for line in path.read_text().splitlines()]


async def known(service: BatchService, batch_id: str, ended: int = -1) -> bool:
    batches, _ = await service.queue.page("", limit=100)
    return any(one.batch_id == batch_id and one.counts.ended >= ended for one in batches)


async def accepted(service: BatchService, batch_id: str) -> bool:
    batches, _ = await service.queue.page("", limit=100)
    return any(one.batch_id == batch_id and one.state > BatchState.RECEIVING for one in batches)


async def test_a_file_is_handed_in_looked_at_and_fetched(
    run: Run, service: BatchService, tmp_path: Path
) -> None:
    file = batch_file(tmp_path, 30)
    done = await run("submit", file, "--deadline", "2h", "--metadata", "team=eval", "--batch-id", "b1")
    assert (done.status, done.stdout) == (0, "b1\n"), done
    assert "accepted: 30 items" in done.stderr
    shown = await run("status", "b1")
    assert "0/30" in shown.stdout
    assert "team=eval" in shown.stdout
    assert (await run("status", "b1", "--json")).json()["progress"]["queued"] == 30
    assert "b1" in (await run("status")).stdout
    await service.complete("b1")
    out = tmp_path / "out.jsonl"
    assert (await run("results", "b1", "--output", out)).status == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(line["custom_id"] for line in lines) == sorted(f"q{n}" for n in range(30))
    assert {line["text"] for line in lines} == {f"answer to q{n}" for n in range(30)}
    assert {line["state"] for line in lines} == {"succeeded"}
    one = await run("results", "b1", "--custom-id", "q7")
    assert one.json()["index"] == 7
    last = await run("results", "b1", "--after", "28")
    assert [json.loads(line)["number"] for line in last.stdout.splitlines()] == [29, 30]
    assert (await run("usage", "--json")).json()["tenants"][0]["succeeded"] == 30
    assert "b1: deleted" in (await run("delete", "b1")).stdout
    gone = await run("status", "b1")
    assert gone.status == 1
    assert "b1" in gone.stderr
    assert (await run("list", "--json")).json() == {"batches": []}


async def test_lines_that_cannot_be_worked_on_are_named_by_number(
    run: Run, service: BatchService, tmp_path: Path
) -> None:
    file = batch_file(
        tmp_path,
        700,
        line2="",
        line3="{",
        line5='{"model": "toy", "prompt": "x", "max_token": 3}',
        line6='{"model": "nobody\'s", "prompt": "x"}',
        line690='{"custom_id": "q0", "model": "toy", "prompt": "x"}',
    )
    done = await run("submit", file, "--deadline", "1h", "--batch-id", "bad")
    assert (done.status, done.stdout) == (2, ""), done
    told = done.stderr.splitlines()
    assert told[0] == f"error: {file}: nothing was accepted:"
    assert told[1] == "  line 3: no JSON: Expecting property name enclosed in double quotes at column 2"
    assert told[2].startswith("  line 5: request: unknown argument: max_token")
    assert told[3] == '  line 6: model: unknown model "nobody\'s"'
    assert told[4] == "  line 690: custom_id 'q0' is that of line 1"
    assert len(told) == 5
    assert not await known(service, "bad")


async def test_wrong_lines_fail_by_themselves_where_that_is_asked_for(
    run: Run, service: BatchService, tmp_path: Path
) -> None:
    file = batch_file(tmp_path, 3, line2="{")
    out = tmp_path / "out.jsonl"
    waiting = asyncio.create_task(
        run("submit", file, "--deadline", "1h", "--on-invalid=fail", "--output", out, "--batch-id=b")
    )
    await eventually(lambda: accepted(service, "b"))
    await service.complete("b")
    done = await waiting
    assert (done.status, done.stdout) == (3, "b\n"), done
    failed = [line for line in map(json.loads, out.read_text().splitlines()) if line["state"] == "failed"]
    assert [line["index"] for line in failed] == [1]
    assert "no JSON" in failed[0]["error"]["message"]
    assert "1 failed" in done.stderr


async def test_openai_lines_come_from_stdin(run: Run, service: BatchService) -> None:
    line = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3},
    }
    done = await run("submit", "-", "--deadline", "60", "--model", "toy", "--json", stdin=json.dumps(line))
    assert done.status == 0, done
    assert done.json()["progress"]["queued"] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--deadline", "soon"), "--deadline must be a time"),
        (("--deadline", "1h", "--metadata", "x"), "--metadata must be KEY=VALUE"),
        (("--deadline", "1h", "--batch-id", "a b"), "batch_id"),
        (("--deadline", "1h", "--output", "/nowhere/out"), "/nowhere/out"),
    ],
)
async def test_wrong_options_are_one_line(
    run: Run, service: BatchService, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = await run("submit", batch_file(tmp_path, 1), *arguments)
    assert done.status == 2, done
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


async def test_an_empty_file_is_refused(run: Run, service: BatchService, tmp_path: Path) -> None:
    done = await run("submit", batch_file(tmp_path, 0), "--deadline", "1h", "--batch-id", "none")
    assert done.status == 2, done
    assert "holds no items" in done.stderr
    assert not await known(service, "none")


async def test_leaving_while_waiting_leaves_the_batch_running(
    run: Run, service: BatchService, tmp_path: Path
) -> None:
    file, out = batch_file(tmp_path, 40), tmp_path / "out.jsonl"
    process = await started(service, "submit", file, "--deadline=1h", "--output", out, "--batch-id=b")
    await eventually(lambda: accepted(service, "b"))
    await service.finish(await service.claim("b", 15))
    await eventually(lambda: out.exists() and len(numbers(out)) == 15)
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert process.returncode == 130
    assert "chiron batch status b --watch" in err.decode()
    assert f"chiron batch results b --follow --output {out}" in err.decode()
    following = asyncio.create_task(run("results", "b", "--follow", "--output", out))
    await service.complete("b")
    assert (await following).status == 0
    assert numbers(out) == list(range(1, 41))
    assert (await run("status", "b", "--watch")).status == 0


async def test_a_command_that_is_killed_goes_on_with_what_its_file_holds(
    run: Run, service: BatchService, tmp_path: Path
) -> None:
    file, out = batch_file(tmp_path, 300), tmp_path / "out.jsonl"
    assert (await run("submit", file, "--deadline=1h", "--batch-id=b")).status == 0
    process = await started(service, "results", "b", "--follow", "--output", out)
    await service.finish(await service.claim("b", 100))
    await eventually(lambda: out.exists() and len(out.read_bytes().splitlines()) >= 100)
    process.kill()
    await process.communicate()
    with out.open("ab") as torn:
        torn.write(b'{"batch_id": "b", "num')
    await service.complete("b")
    assert (await run("results", "b", "--output", out)).status == 0
    assert numbers(out) == list(range(1, 301))
    ids = [json.loads(line)["custom_id"] for line in out.read_text().splitlines()]
    assert sorted(ids) == sorted(f"q{n}" for n in range(300))


async def test_a_file_of_another_batch_is_not_added_to(
    run: Run, service: BatchService, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text('{"batch_id": "other", "number": 3}\n')
    done = await run("results", "b", "--output", out)
    assert done.status == 2
    assert "holds results of batch other" in done.stderr


async def test_leaving_during_the_submission_says_how_to_go_on(run: Run, service: BatchService) -> None:
    process = await started(service, "submit", "-", "--deadline=1h", "--batch-id=b", "--model=toy")
    assert process.stdin is not None
    process.stdin.write(b'{"prompt": "x"}\n' * 500)
    await process.stdin.drain()
    await eventually(lambda: known(service, "b"))
    process.send_signal(signal.SIGINT)
    await process.wait()
    assert process.stderr is not None
    assert "--batch-id b" in (await process.stderr.read()).decode()
    assert process.returncode == 130


@pytest.mark.parametrize("policy", ["refuse", "fail"])
async def test_an_id_that_occurs_twice_refuses_the_file_either_way(
    run: Run, service: BatchService, tmp_path: Path, policy: str
) -> None:
    file = batch_file(tmp_path, 3, line2='{"custom_id": "q0", "prompt": "x", "model": "toy"}')
    done = await run("submit", file, "--deadline=1h", f"--on-invalid={policy}", "--batch-id=twice")
    assert (done.status, done.stdout) == (2, "")
    assert "line 2:" in done.stderr
    assert not await known(service, "twice")


async def test_half_a_character_is_the_fault_of_its_line(
    run: Run, service: BatchService, tmp_path: Path
) -> None:
    file = tmp_path / "halves.jsonl"
    lines = [
        r'{"model": "toy", "prompt": "a\ud800"}',
        r'{"model": "toy", "prompt": "a", "custom_id": "\ud800"}',
        r'{"model": "toy", "prompt": "a", "\ud800": 1}',
        r'{"model": "toy", "messages": [{"role": "user", "content": "\ud800"}]}',
    ]
    file.write_text("\n".join(lines))
    done = await run("submit", file, "--deadline=1h", "--batch-id=b")
    assert done.status == 2
    told = done.stderr.splitlines()[1:]
    assert [line.partition(":")[0].strip() for line in told] == ["line 1", "line 2", "line 3", "line 4"]
    assert not await known(service, "b")


async def test_a_cancelled_batch_is_told_by_the_exit_status(
    run: Run, service: BatchService, tmp_path: Path
) -> None:
    file = batch_file(tmp_path, 5)
    waiting = asyncio.create_task(run("submit", file, "--deadline=1h", "--wait", "--batch-id=b"))
    await eventually(lambda: accepted(service, "b"))
    assert "cancelling" in (await run("cancel", "b")).stdout
    await eventually(lambda: _swept(service))
    done = await waiting
    assert done.status == 3, done
    assert "5 cancelled; cancelled" in done.stderr
    assert (await run("status", "absent")).stderr.strip().endswith("no batch 'absent'")


async def test_a_batch_waited_for_as_json_is_one_object_on_stdout(
    run: Run, service: BatchService, tmp_path: Path
) -> None:
    file = batch_file(tmp_path, 5)
    waiting = asyncio.create_task(run("submit", file, "--deadline=1h", "--wait", "--json", "--batch-id=b"))
    await eventually(lambda: accepted(service, "b"))
    await service.queue.cancel(("", "b"))
    await eventually(lambda: _swept(service))
    done = await waiting
    assert done.json()["progress"]["cancelled"] == 5
    assert "accepted: b" in done.stderr


async def _swept(service: BatchService) -> bool:
    await service.queue.sweep()
    return await known(service, "b", ended=5)
