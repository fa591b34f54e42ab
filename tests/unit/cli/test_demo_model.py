"""The demonstration's real model is built out of sight, and a build that fails says why in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from chiron.cluster.vllm_cpu import ModelUnavailableError, smollm2_spec

FOLDER = Path(".models") / "smollm2-135m-instruct"


def test_a_model_that_is_there_is_used_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    FOLDER.mkdir(parents=True)
    (FOLDER / ".complete").touch()

    spec = smollm2_spec()

    assert (spec.name, spec.engine, spec.weights) == ("smollm2", "vllm", str(tmp_path / FOLDER))
    assert "torch" not in sys.modules
    assert capfd.readouterr() == ("", "")


def test_a_build_that_fails_says_why_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".models").touch()

    with pytest.raises(ModelUnavailableError) as caught:
        smollm2_spec()

    said = str(caught.value)
    assert said.startswith("SmolLM2-135M-Instruct cannot be built: FileExistsError: ")
    assert "\n" not in said
    assert capfd.readouterr() == ("", "")
