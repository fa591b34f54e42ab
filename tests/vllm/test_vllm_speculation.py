"""Speculative decoding: several tokens come in one step, and nothing else changes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from services.worker.engines.vllm import VllmEngine
from tests.conformance.engine_reading import GREEDY, run
from tests.vllm.support import engine_config

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKENS = 200


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(random_llama: Path) -> AsyncIterator[VllmEngine]:
    # As a spec's Struct delivers them: all numbers are floats.
    speculation = {
        "method": "ngram",
        "num_speculative_tokens": 4.0,
        "prompt_lookup_min": 1.0,
        "prompt_lookup_max": 3.0,
    }
    engine = await VllmEngine.start(
        engine_config(random_llama, engine_args={"speculative_config": speculation})
    )
    yield engine
    await engine.close()


def greedy_reference(weights: Path, prompts: list[list[int]]) -> list[list[int]]:
    """The same model by transformers, token by token."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(weights, dtype=torch.float32)
    outputs = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            for _ in range(TOKENS):
                ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        outputs.append(ids[0, len(prompt) :].tolist())
    return outputs


async def test_accepted_drafts_are_the_tokens_that_the_model_would_have_chosen(
    engine: VllmEngine, random_llama: Path
) -> None:
    prompts = [[200 + index, 17, 200 + index, 17] for index in range(4)]
    readings = [await run(engine, prompt, max_tokens=TOKENS, **GREEDY) for prompt in prompts]
    assert [reading.only.tokens for reading in readings] == greedy_reference(random_llama, prompts)
    steps = [len(delta.token_ids) for each in readings for output in each.outputs for delta in output.deltas]
    assert max(steps) > 1, "a draft was accepted"
    for reading in readings:
        assert len(reading.only.text_ends) == TOKENS  # that they are in order is checked as they are read
    stats = engine.stats()
    assert stats.draft_tokens > stats.accepted_tokens > 0
    # One request runs at a time: each step makes one token of its own beside the accepted drafts.
    assert stats.output_tokens - stats.accepted_tokens <= stats.steps
    assert stats.output_tokens == TOKENS * len(prompts)
