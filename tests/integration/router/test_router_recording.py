"""A router that records, before real workers: what was asked and came of it, and no word of what was said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chiron.client import Client, NoInstance, Slo
from chiron.internal.v1 import control_pb2
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from services.router.batch.settings import BatchSettings
from services.router.recording.settings import RecordingSettings
from tests.support.wait import eventually

PROMPT = "a very private question"


def written(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted(folder.glob("*.jsonl")))


@pytest.fixture
async def recorded(start_real, controller, start_router, tmp_path: Path):
    """A router with one real worker, and the lines that it has written so far."""
    worker = await start_real("a")
    controller.table.models.append(control_pb2.RoutedModel(name="m", spec_version=1))
    controller.table.models.append(control_pb2.RoutedModel(name="gone", failed=True, reason="no weights"))
    controller.table.instances.append(
        control_pb2.RoutedInstance(
            instance_id="a",
            incarnation=1,
            model="m",
            address=worker.address,
            role=types_pb2.ROLE_MIXED,
            state=types_pb2.INSTANCE_STATE_READY,
        )
    )
    folder = tmp_path / "recording"
    queue = BatchSettings(store=f"sqlite:{tmp_path / 'queue.db'}")
    router = await start_router(recording=RecordingSettings(path=folder), batch=queue)
    await eventually(lambda: [one for one in router.core._instances.values() if one.usable])

    def lines() -> list[dict[str, Any]]:
        return [
            line for line in map(json.loads, written(folder).splitlines()) if "chiron_recording" not in line
        ]

    return router, lines, folder


async def test_every_way_through_a_router_is_recorded_with_its_figures(recorded) -> None:
    router, lines, folder = recorded
    asked = {"model": "m", "prompt": PROMPT, "max_tokens": 6, "ignore_eos": True}
    async with Client(router.address) as direct, Client(router.address, lookaside=False) as proxied:
        answers = [
            await direct.complete(**asked, slo=Slo(ttft_ms=900, itl_ms=50)),
            await proxied.complete(**asked, priority=3),
        ]
        await eventually(lambda: len(lines()) == 2)
        with pytest.raises(NoInstance):
            await direct.complete(model="gone", prompt=PROMPT)
        batch = await direct.batch.submit([asked] * 3, deadline_s=600)
        await direct.batch.wait(batch.batch_id)
        await eventually(lambda: len(lines()) == 6)
        stream = direct.generate(**{**asked, "max_tokens": 4000})
        async with stream:
            await anext(stream)
        await eventually(lambda: len(lines()) == 7, within_s=30)

    one, other, refused, *items, left = lines()
    for line, answer in zip((one, other), answers, strict=True):
        assert (line["class"], line["end"], line["instance"]) == ("interactive", "ok", "a")
        assert (line["prompt"], line["output"]) == (answer.usage.prompt_tokens, 6)
        assert line["ttft_ms"] == pytest.approx(answer.timing.ttft_ms, abs=0.001)
        assert line["itl_mean_ms"] == pytest.approx(answer.timing.itl_mean_ms, abs=0.001)
    assert one["slo"] == {"ttft_ms": 900, "itl_ms": 50}
    assert (other["slo"], other["priority"]) == ({}, 3)
    assert 0 <= one["at"] <= other["at"] <= refused["at"]
    assert (refused["model"], refused["end"], refused["reason"]) == ("gone", "refused", "NO_INSTANCE")
    assert [(line["class"], line["end"], line["output"]) for line in items] == [("batch", "ok", 6)] * 3
    assert len({line["at"] for line in items}) == 1
    assert all(590 < line["deadline_s"] <= 600 for line in items)
    assert len({line["id"] for line in lines()}) == 7
    assert left["end"] == "cancelled"
    assert 0 < left["output"] < 4000
    counts = router.router._placer.counts()
    assert (counts.recorded, counts.not_recorded) == (7, 0)
    text = written(folder)
    said = [PROMPT, batch.batch_id, *(answer.request_id for answer in answers)]
    said += [word for answer in answers for word in answer.text.split() if len(word) > 3]
    assert [word for word in said if word in text] == []


async def test_who_records_nothing_asks_workers_for_nothing(start_worker, start_router) -> None:
    worker = await start_worker("a")
    router = await start_router(worker)
    assert router.router._placer.book is None
    assert worker.tell_ended == [False]


async def test_an_answer_that_came_through_is_recorded_though_its_worker_never_tells(
    start_worker, start_router, tmp_path: Path
) -> None:
    worker = await start_worker("a")
    folder = tmp_path / "recording"
    router = await start_router(worker, recording=RecordingSettings(path=folder))
    call = router.stub.Generate(pb.GenerateRequest(request_id="r", model="m", prompt=PROMPT))
    answered = await worker.calls.get()
    last = pb.OutputDelta(token_ids=[1], usage=pb.Usage(prompt_tokens=5, completion_tokens=1))
    last.timing.ttft_ms = 12.0
    answered.send(pb.GenerateResponse(deltas=[last]))
    answered.finish()
    assert [response.deltas[0].usage.completion_tokens async for response in call] == [1]

    def lines() -> list[dict[str, Any]]:
        return [
            line for line in map(json.loads, written(folder).splitlines()) if "chiron_recording" not in line
        ]

    await eventually(lines)
    [line] = lines()
    assert (line["end"], line["prompt"], line["output"], line["ttft_ms"]) == ("ok", 5, 1, 12.0)
    assert line["took_s"] > 0
