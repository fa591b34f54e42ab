"""Policies from `module:Class`: how they are loaded, and how a mistake in one is told in one line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from traceback import walk_tb
from types import TracebackType
from typing import Any

FAILURES = (Exception, SystemExit)
"""What a policy's own code may raise; an interrupt from the keyboard is none of its doing."""
_LONGEST = 300
"""Longest text of a value or an error in a message, in characters."""


class PolicyError(ValueError):
    """A policy's code failed, or its answer cannot be carried out; the text is one line that names both."""


def class_name(policy: object) -> str:
    """`module:Class` of a policy."""
    return f"{type(policy).__module__}:{type(policy).__qualname__}"


def failure(about: str, module: str, error: BaseException) -> PolicyError:
    """What to raise instead of an exception out of a policy's code.

    about: what failed. module: the module whose last line in the traceback is named; if it has none, the last
    line of all is. The first line of the traceback is the caller's own.
    """
    text = one_line(error, str)
    where = _last_line(error.__traceback__, module)
    return PolicyError(f"{about}: {type(error).__name__}{text and f': {text}'}{where and f' ({where})'}")


def one_line(value: object, text: Callable[[object], str] = repr) -> str:
    """A value as text for a message: one line, not too long, whatever its class makes of it."""
    try:
        line = " ".join(text(value).split())
    except Exception:  # The text is for a message about this very object, which may be broken.
        return f"<{type(value).__name__}>"
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def _last_line(trace: TracebackType | None, module: str) -> str:
    lines = [(frame.f_code.co_filename, line) for frame, line in walk_tb(trace)][1:]
    lines = [line for line in lines if not line[0].startswith("<frozen ")]
    there = [line for line in lines if line[0] == getattr(sys.modules.get(module), "__file__", None)]
    found = (there or lines)[-1:]
    return f"{found[0][0]}:{found[0][1]}" if found else ""


def load_custom(what: str, name: str, method: str, unknown: type[ValueError]) -> Any:
    """Makes a policy from `module:Class`.

    what: the kind of policy, for messages. method: what the class must have. Raises `unknown` when there is
    no such class or it lacks the method, PolicyError when its module or its constructor fails.
    """
    module, _, kind_name = name.partition(":")
    try:
        kind = getattr(importlib.import_module(module), kind_name)
    except (ImportError, AttributeError) as error:
        raise unknown(f"{what} {name!r}: {error}") from error
    except FAILURES as error:
        raise failure(f"{what} {name}: module {module} failed", module, error) from error
    if not callable(getattr(kind, method, None)):
        raise unknown(f"{what} {name!r}: {kind_name} has no method {method}")
    try:
        return kind()
    except FAILURES as error:
        raise failure(f"{what} {name}: {kind_name}() failed", module, error) from error
