"""Weights of the vLLM engine are looked for before vLLM is."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.worker.engines.base import EngineConfig, EngineLoadError
from services.worker.engines.vllm import VllmEngine
from services.worker.engines.vllm.weights import find_weights


@pytest.mark.parametrize(
    "weights", ["/nowhere", "./nowhere", "../nowhere/at/all", "~/nowhere", "~nobody-here/x"]
)
async def test_a_path_that_does_not_exist_on_the_node_is_named(weights: str) -> None:
    config = EngineConfig(
        instance_id="chat-1",
        model="chat",
        weights=weights,
        revision="",
        gpus=1,
        max_batch_size=1,
        batch_size=1,
        step_token_budget=0,
        chat_template="",
    )
    with pytest.raises(EngineLoadError) as caught:
        await VllmEngine.start(config)
    assert str(caught.value) == f"weights: {weights} does not exist on this node"


def test_a_path_that_cannot_be_followed_says_why(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(
        EngineLoadError, match=r"weights: /.*/loop cannot be read on this node: .*symbolic links"
    ):
        find_weights(str(tmp_path / "loop"))


def test_a_path_that_exists_is_taken_with_its_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert find_weights("~/model") == find_weights(str(tmp_path / "model")) == str(tmp_path / "model")


def test_the_name_of_a_repository_is_left_as_it_is() -> None:
    assert find_weights("someone/some-model") == "someone/some-model"


def test_no_weights_at_all_are_asked_for() -> None:
    with pytest.raises(EngineLoadError, match="weights: the vllm engine needs"):
        find_weights("")
