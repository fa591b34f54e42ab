"""docs/openai.md tells of every field, and of none that there is not."""

from __future__ import annotations

import re
from pathlib import Path

from services.router.http.chat import request as chat
from services.router.http.completions import request as completions
from services.router.http.fields import Slo, StreamOptions, StructuredOutputs

PAGE = Path(__file__).parents[3] / "docs" / "openai.md"


def known() -> set[str]:
    names: set[str] = set()
    for kind in (chat.ChatRequest, completions.CompletionRequest):
        names |= {field.alias or name for name, field in kind.model_fields.items()}
    for module in (chat, completions):
        names |= module.ACCEPTED | module.REFUSED.keys()
    return names


def rows() -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    section = text[text.index("## Chat and text completions") : text.index("## Classes and SLOs")]
    return [line for line in section.splitlines() if line.startswith("| `")]


def told() -> set[str]:
    return {name for line in rows() for name in re.findall(r"`([a-z0-9_]+)`", line.split("|")[1])}


def test_every_field_is_told_of() -> None:
    promised = {"slo", "request_class"}
    assert known() - promised <= told()


def test_no_field_is_told_of_that_there_is_not() -> None:
    assert told() <= known() | {"medium"}


def test_the_parts_of_fields_are_told_of() -> None:
    page = PAGE.read_text(encoding="utf-8")
    parts = [*StreamOptions.model_fields, *(f.alias or n for n, f in StructuredOutputs.model_fields.items())]
    assert [name for name in parts if f"`{name}`" not in page] == []
    assert [name for name in Slo.model_fields if f"`slo.{name}`" not in page] == []
