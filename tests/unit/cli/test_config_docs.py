from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import pytest

from chiron.cli.config_docs import Key, keys_of, page

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True)
class Inner:
    """A table."""

    limit: int = 3
    """Most of them,
    counted."""


@dataclass(frozen=True, slots=True)
class Outer:
    """A service."""

    name: str
    """Who."""
    colour: Colour = Colour.BLUE
    """Which."""
    paths: tuple[Path, ...] = (Path("a"), Path("b"))
    """Where."""
    ratio: float | None = None
    """How much."""
    on: bool = True
    """Whether."""
    inner: Inner = field(default_factory=Inner)


@dataclass(frozen=True, slots=True)
class Silent:
    """A service."""

    name: str = ""


def test_each_key_is_told_with_type_default_and_meaning() -> None:
    assert keys_of(Outer) == [
        Key("name", "text", "", "Who."),
        Key("colour", "one of `red`, `blue`", '"blue"', "Which."),
        Key("paths", "list of path", '["a", "b"]', "Where."),
        Key("ratio", "number or empty", '""', "How much."),
        Key("on", "true or false", "true", "Whether."),
        Key("inner.limit", "whole number", "3", "Most of them,\ncounted."),
    ]


def test_a_field_without_a_docstring_is_an_error() -> None:
    with pytest.raises(LookupError, match=r"Silent\.name has no docstring"):
        keys_of(Silent)


def test_the_page_in_docs_is_what_the_config_classes_say() -> None:
    assert PAGE.read_text() == page(), "run: python -m chiron.cli.config_docs"
