"""The sim engine's parser for tool calls: `hermes`, the form that Hermes 2 Pro and its likes write.

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>

Text outside of the tags is content; white space that follows a call is not. A call's arguments come out as
they are written, valid JSON or not; `</tool_call>` ends them wherever it stands. What is tagged but has no
name is content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from chiron.v1 import inference_pb2 as pb
from services.worker.engines.calls import CallParser

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_NAME = r'"name"\s*:\s*("(?:[^"\\]|\\.)*")'
_HEAD = re.compile(rf'\s*\{{\s*{_NAME}\s*,\s*"arguments"\s*:\s*(?=\S)', re.DOTALL)


class HermesParser(CallParser):
    """Reads one choice's output."""

    def __init__(self) -> None:
        self._text = ""
        """Not yet told apart."""
        self._read = self._content
        self._calls = 0
        self._after_call = False
        self._value = JsonValue()

    def feed(self, token_ids: Sequence[int], text: str, *, finished: bool) -> pb.ParsedDelta:
        """See `CallParser.feed`."""
        self._text += text
        out = pb.ParsedDelta()
        while self._read(out, finished):
            pass
        return out

    def _content(self, out: pb.ParsedDelta, finished: bool) -> bool:
        if self._after_call:
            self._text = self._text.lstrip()
            self._after_call = not self._text
        before, tag, after = self._text.partition(OPEN)
        if tag:
            out.content += before
            self._text, self._read = after, self._head
            return True
        keep = 0 if finished else _overlap(before, OPEN)
        out.content += before[: len(before) - keep]
        self._text = before[len(before) - keep :]
        return False

    def _head(self, out: pb.ParsedDelta, finished: bool) -> bool:
        body, tag, after = self._text.partition(CLOSE)
        found = _HEAD.match(body)
        name = _text_of(found[1]) if found else None
        if found and name is not None:
            out.tool_calls.add(index=self._calls, name=name)
            self._text, self._value, self._read = self._text[found.end() :], JsonValue(), self._arguments
            return True
        if not tag:
            if finished:
                out.content += OPEN + body
                self._text = ""
            return False
        call = _whole(body)
        if call is None:
            out.content += OPEN + body + CLOSE
        else:
            out.tool_calls.add(index=self._calls, name=call[0], arguments=call[1])
            self._calls += 1
        self._text, self._read, self._after_call = after, self._content, call is not None
        return True

    def _arguments(self, out: pb.ParsedDelta, finished: bool) -> bool:
        body, tag, after = self._text.partition(CLOSE)
        keep = 0 if tag or finished else _overlap(body, CLOSE)
        arguments = self._value.take(body[: len(body) - keep])
        if arguments:
            out.tool_calls.add(index=self._calls, arguments=arguments)
        if not tag:
            self._text = body[len(body) - keep :]
            return False
        self._calls += 1
        self._text, self._read, self._after_call = after, self._content, True
        return True


class JsonValue:
    """Finds where a JSON value ends that comes in pieces; in a text that is no JSON, perhaps never."""

    __slots__ = ("_depth", "_ended", "_escaped", "_quoted")

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = self._escaped = self._ended = False

    def take(self, text: str) -> str:
        """What of the next piece belongs to the value."""
        for index, character in enumerate(text):
            if self._ended:
                return text[:index]
            if self._quoted:
                self._quoted = self._escaped or character != '"'
                self._escaped = character == "\\" and not self._escaped
                self._ended = not (self._quoted or self._depth)
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                self._ended = self._depth <= 0
                if self._depth < 0:
                    # It closes what the value stands in.
                    return text[:index]
        return text


def _overlap(text: str, tag: str) -> int:
    """Characters at the end of the text with which the tag may begin."""
    sizes = range(min(len(tag) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(tag[:size])), 0)


def _whole(body: str) -> tuple[str, str] | None:
    """Name and arguments of a call whose object is not written in the usual order; None: it is no call."""
    try:
        call = json.loads(body)
    except ValueError:
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", {})
    return call["name"], json.dumps(arguments, ensure_ascii=False)


def _text_of(quoted: str) -> str | None:
    try:
        return str(json.loads(quoted))
    except ValueError:
        return None
