"""The sim engine's parser of tool calls, on outputs of every kind."""

from __future__ import annotations

import json

import pytest

from chiron.client.parsed import ParsedParts
from chiron.v1 import inference_pb2 as pb
from services.worker.engines.sim.call_parser import HermesParser

WEATHER = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
CITY = ("weather", '{"city": "Paris"}')


def parse(text: str, pieces: int = 1) -> tuple[str, list[tuple[str, str]]]:
    """Content and calls (name, arguments), fed in pieces of this many characters, then ended."""
    parser, parts = HermesParser(), ParsedParts()
    for start in range(0, len(text), pieces):
        parts.add(parser.feed([1], text[start : start + pieces], finished=False))
    parts.add(parser.feed([], "", finished=True))
    found = parts.so_far()
    return found.content, [(call.name, call.arguments) for call in found.tool_calls]


def call(name: str, arguments: str) -> str:
    return f'<tool_call>{{"name": {json.dumps(name)}, "arguments": {arguments}}}</tool_call>'


NESTED = '{"a": {"b": [{"c": "}"}, "]", "\\"{"]}, "d": "x\\\\"}'
UNICODE = '{"city": "Zürich 🚀", "note": "\\u00e9"}'


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("", "", []),
        ("just text < and <tool", "just text < and <tool", []),
        (WEATHER, "", [CITY]),
        (f"Let me look.\n{WEATHER}", "Let me look.\n", [CITY]),
        (f"{WEATHER}\n{WEATHER}\n", "", [CITY, CITY]),
        (f"{WEATHER}\n\nThat is all.", "That is all.", [CITY]),
        (f"a{WEATHER} b {call('f', '{}')}", "ab ", [CITY, ("f", "{}")]),
        (call("f", NESTED), "", [("f", NESTED)]),
        (call("f", UNICODE), "", [("f", UNICODE)]),
        (call('"quoted" näme', "{}"), "", [('"quoted" näme', "{}")]),
        (call("no such tool", "{}"), "", [("no such tool", "{}")]),
        (call("f", "[1, 2]"), "", [("f", "[1, 2]")]),
        (call("f", '"text }"'), "", [("f", '"text }"')]),
        (call("f", "7"), "", [("f", "7")]),
        # What is no JSON comes out as it is written.
        (call("f", "{city: Paris}"), "", [("f", "{city: Paris}")]),
        (call("f", '{"a": "open}'), "", [("f", '{"a": "open}}')]),
        (call("f", '{"a": "</tool_call>"}'), '"}}</tool_call>', [("f", '{"a": "')]),
        # Keys in another order, keys that are not there, keys that nobody knows.
        ('<tool_call>{"arguments": {"x": 1}, "name": "f"}</tool_call>', "", [("f", '{"x": 1}')]),
        ('<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
        ('<tool_call>{"name": "f", "arguments": {"x": 1}, "id": 3}</tool_call>', "", [("f", '{"x": 1}')]),
        # No call at all.
        ("<tool_call>what?</tool_call> So.", "<tool_call>what?</tool_call> So.", []),
        ('<tool_call>{"name": 7}</tool_call>', '<tool_call>{"name": 7}</tool_call>', []),
        ('<tool_call>{"name": "\n", "arguments": {}}</tool_call>',) * 2 + ([],),
        # Cut off in the tag, in the name, in the arguments, in the end tag.
        ("so <tool_ca", "so <tool_ca", []),
        ('<tool_call>{"name": "wea', '<tool_call>{"name": "wea', []),
        ('<tool_call>{"name": "f", "arguments": ', '<tool_call>{"name": "f", "arguments": ', []),
        ('<tool_call>{"name": "f", "arguments": {"city": "Pa', "", [("f", '{"city": "Pa')]),
        ('<tool_call>{"name": "f", "arguments": {"x": 1}', "", [("f", '{"x": 1}')]),
        ('<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_c', "", [("f", '{"x": 1}')]),
        ('<tool_call>{"name": "f", "arguments": {"x": "</tool', "", [("f", '{"x": "</tool')]),
    ],
)
@pytest.mark.parametrize("pieces", [1, 2, 7, 1000])
def test_content_and_calls_are_told_apart(
    text: str, content: str, calls: list[tuple[str, str]], pieces: int
) -> None:
    assert parse(text, pieces) == (content, calls)


def test_arguments_are_told_as_they_come() -> None:
    parser = HermesParser()
    begun = parser.feed([1], '<tool_call>{"name": "f", "arguments": {"x', finished=False)
    assert begun.tool_calls == [
        pb.ToolCallDelta(index=0, name="f"),
        pb.ToolCallDelta(index=0, arguments='{"x'),
    ]
    more = parser.feed([1], '": 1}', finished=False)
    assert more.tool_calls == [pb.ToolCallDelta(index=0, arguments='": 1}')]
    assert parser.feed([1], "}</tool_call>", finished=False) == pb.ParsedDelta()
    assert parser.feed([1], call("g", "{}"), finished=False).tool_calls[0] == pb.ToolCallDelta(
        index=1, name="g"
    )


def test_content_is_told_as_it_comes() -> None:
    parser = HermesParser()
    assert parser.feed([1], "Look <", finished=False).content == "Look "
    assert parser.feed([1], "tool_ box", finished=False).content == "<tool_ box"
