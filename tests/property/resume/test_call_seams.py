"""However an output with tool calls is bunched, wherever it is cut: its reader is told the same."""

from __future__ import annotations

import json

from hypothesis import example, given, settings
from hypothesis import strategies as st

from chiron.v1 import inference_pb2 as pb
from services.worker.call_reader import CallReader, join
from services.worker.engines.base import ChoiceDelta
from services.worker.engines.calls import Calls
from services.worker.engines.sim.call_parser import HermesParser
from services.worker.engines.sim.choice import Choice
from services.worker.engines.sim.tokenizer import encode

PROMPT = [7]
PIECES = st.sampled_from(
    [
        "<tool_call>", "</tool_call>", '{"name": "f", ', '"arguments": ', "{", "}", '"', ": ", ", ", "[", "]",
        '{"name": "g", "arguments": {"a": "é🚀"}}',
        "<", "</", "tool_", "call>", "\\", "\n", "sea", "漢字", "7",
    ]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def outputs(draw: st.DrawFn) -> str:
    """Well-formed calls between texts, or pieces of such thrown together."""
    if draw(st.booleans()):
        return "".join(draw(st.lists(PIECES, min_size=1, max_size=14)))
    parts = [draw(st.text(max_size=8))]
    for _ in range(draw(st.integers(1, 3))):
        body = {"name": draw(st.text(min_size=1, max_size=5)), "arguments": draw(VALUES)}
        parts.append(f"<tool_call>\n{json.dumps(body, ensure_ascii=draw(st.booleans()))}\n</tool_call>")
        parts.append(draw(st.sampled_from(["", "\n", " and "])))
    return "".join(parts)


def written(text: str, stop: list[str], most: int) -> Choice:
    params = pb.SamplingParams(max_tokens=most, stop=stop)
    params.structured_output.choice.values.append(text)
    return Choice(0, params, PROMPT, 0, 0)


def reader(delivered: ChoiceDelta | None = None) -> CallReader:
    calls = Calls(pb.SamplingParams(), lambda prompt: HermesParser())
    return CallReader(calls, PROMPT, request_id="r", choices=1, one_call=False, delivered=delivered)


def read(into: CallReader, choice: Choice, sizes: list[int]) -> pb.ParsedDelta:
    """All that a choice still has to say, in bunches of these sizes, over and over."""
    out, turn = pb.ParsedDelta(), 0
    while not choice.finished:
        join(out, into.read(choice.emit(sizes[turn % len(sizes)])) or pb.ParsedDelta())
        turn += 1
    return out


@settings(max_examples=150, deadline=None)
@given(
    text=outputs().filter(lambda text: bool(encode(text))),
    stop=st.lists(st.sampled_from(["}", "tool_call>", "never there", '"g"']), max_size=2),
    most=st.integers(1, 120),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    cut=st.integers(1, 119),
)
@example(text="<tool_call>", stop=[], most=100, sizes=[1], cut=3)
def test_neither_bunches_nor_cuts_show(
    text: str, stop: list[str], most: int, sizes: list[int], cut: int
) -> None:
    whole = read(reader(), written(text, stop, most), [1])
    assert read(reader(), written(text, stop, most), sizes) == whole

    first = written(text, stop, most)
    head = first.emit(min(cut, most))
    if first.finished:
        return
    told = reader().read(head) or pb.ParsedDelta()
    length = head.text_ends[-1]
    delivered = written(text, stop, most).delivered(head.token_ids, length)
    assert (delivered.text, delivered.text_ends) == (head.text, head.text_ends)
    second = written(text, stop, most)
    assert second.resume(head.token_ids, length) is None
    join(told, read(reader(delivered), second, sizes))
    assert told == whole
