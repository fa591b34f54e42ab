"""Wherever a stream breaks, and however often, what its reader gets is the undisturbed output."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import EngineConfig
from services.worker.engines.sim import SimEngine
from tests.conformance.engine_reading import Choice, Reading, drain, make_request, run
from tests.support.instant_clock import InstantClock

TEXT = "a🚀 b—é 漢字 and so on, 🚀🚀 for ever"


CONFIG = EngineConfig(
    instance_id="sim-0",
    model="sim",
    weights="",
    revision="",
    gpus=1,
    max_batch_size=4,
    batch_size=4,
    step_token_budget=0,
    chat_template="",
    engine_args={"load_time_s": 0.0, "draft_tokens": 2},
)


@st.composite
def samplings(draw: st.DrawFn) -> dict[str, Any]:
    """Everything that makes an output depend on what went before."""
    max_tokens = draw(st.integers(1, 40))
    options: dict[str, Any] = {
        "max_tokens": max_tokens,
        "min_tokens": draw(st.integers(0, max_tokens)),
        "temperature": draw(st.sampled_from([0.0, 0.7, 1.5])),
        "seed": draw(st.integers(0, 5)),
        "ignore_eos": draw(st.booleans()),
        "include_stop": draw(st.booleans()),
        "logprobs": draw(st.integers(0, 2)),
        "repetition_penalty": draw(st.sampled_from([1.0, 1.4])),
        "frequency_penalty": draw(st.sampled_from([0.0, 0.8])),
    }
    if draw(st.booleans()):
        options |= {"min_tokens": 0}
        options["structured_output"] = pb.StructuredOutput(choice=pb.StringList(values=[TEXT]))
    return options


async def _same(options: dict[str, Any], stop_at: float, length: int, cuts: list[float]) -> None:
    engine = await SimEngine.start(CONFIG, InstantClock())
    try:
        text = (await run(engine, **options)).only.text
        start = int(stop_at * len(text))
        options["stop"] = [stop for stop in ("never there", text[start : start + length]) if stop]
        whole = (await run(engine, **options)).only
        held = Choice()
        for cut in sorted({round(cut * len(whole.tokens)) for cut in cuts} - {0}):
            done = len(held.tokens)
            # An attempt that got as far as the cut: its reader has the tokens up to it, and their text.
            released = max(whole.text_ends[cut - 1], len(held.text))
            held = Choice(
                whole.tokens[:cut], whole.text[:released], whole.text_ends[:cut], whole.logprobs[:cut]
            )
            assert cut > done
            request = make_request(
                engine, delivered_token_ids=held.tokens, delivered_text_length=released, **options
            )
            copy = Choice(list(held.tokens), held.text, list(held.text_ends), list(held.logprobs))
            found = (await drain(engine.generate(request), Reading(choices={0: copy}))).only
            assert found == whole
    finally:
        await engine.close()


@settings(max_examples=60, deadline=None)
@given(
    options=samplings(),
    stop_at=st.floats(0, 1),
    length=st.integers(1, 12),
    cuts=st.lists(st.floats(0, 1), min_size=1, max_size=4),
)
def test_a_broken_stream_is_the_undisturbed_one(
    options: dict[str, Any], stop_at: float, length: int, cuts: list[float]
) -> None:
    asyncio.run(_same(options, stop_at, length, cuts))
