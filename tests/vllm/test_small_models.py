"""Small models are built once, whole, and the same each time."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from chiron.testing.models import ModelBuildError, random_llama


def digest(model: Path) -> str:
    return hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()


def test_the_seed_determines_the_weights(tmp_path: Path) -> None:
    small = {"hidden_size": 64, "layers": 1}
    first, again, other = (
        random_llama(tmp_path / name, seed=seed, **small)
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert digest(first) == digest(again)
    assert digest(first) != digest(other)


def test_a_complete_model_is_left_as_it_is(tmp_path: Path) -> None:
    model = random_llama(tmp_path / "model", hidden_size=64, layers=1)
    before = {file: file.stat().st_mtime_ns for file in model.iterdir()}
    assert random_llama(tmp_path / "model", hidden_size=64, layers=1) == model
    assert {file: file.stat().st_mtime_ns for file in model.iterdir()} == before
    assert [each.name for each in tmp_path.iterdir()] == ["model"], "no scratch folder stays"


def test_a_folder_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(ModelBuildError, match="holds no complete model"):
        random_llama(tmp_path / "model", hidden_size=64, layers=1)
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


def test_the_tokenizer_keeps_every_byte(random_llama: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(random_llama)
    text = "Ünï¢ödé 🦀 \x00\t {json: true}"
    assert tokenizer.decode(tokenizer.encode(text)) == text
