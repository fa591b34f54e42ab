"""What a line of a batch file means."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chiron.cli.batch.durations import seconds_of, short
from chiron.cli.batch.lines import read_line
from chiron.client import Grammar, JsonObject, JsonSchema, MalformedItem, OneOf, Regex
from chiron.client.batch.items import wire_item


def read(line: Any, model: str = "") -> Any:
    return read_line(json.dumps(line).encode(), model)


def why(line: Any) -> str:
    item = read(line) if not isinstance(line, bytes) else read_line(line)
    assert isinstance(item, MalformedItem), item
    return item.reason


def chat(**body: Any) -> dict[str, Any]:
    return {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "toy", "messages": [{"role": "user", "content": "hi"}], **body},
    }


def completion(**body: Any) -> dict[str, Any]:
    return {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "toy", **body}}


def test_a_line_of_chirons_own_is_what_generate_takes() -> None:
    line = {"custom_id": "a", "model": "toy", "prompt": "hi", "max_tokens": 4, "seed": None, "stop": ["x"]}
    assert read(line) == {"custom_id": "a", "model": "toy", "prompt": "hi", "max_tokens": 4, "stop": ["x"]}
    assert read({"prompt": "hi"}, "toy")["model"] == "toy"
    assert read({"prompt": "hi", "model": "own"}, "toy")["model"] == "own"
    assert read({"prompt": "hi", "logit_bias": {"5": 1}})["logit_bias"] == {5: 1}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"json_schema": {"type": "object"}}, JsonSchema({"type": "object"})),
        ({"json_object": True}, JsonObject()),
        ({"regex": "a+"}, Regex("a+")),
        ({"grammar": "root ::= x"}, Grammar("root ::= x")),
        ({"choice": ["a", "b"]}, OneOf(["a", "b"])),
    ],
)
def test_constraints_are_written_as_one_key(given: Any, meant: Any) -> None:
    assert read({"prompt": "x", "structured_output": given})["structured_output"] == meant


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "no JSON: Expecting property name"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b"[" * 100_000, "no JSON"),
        (b"3", "must be a JSON object, not int"),
        (b'{"prompt": "\xff"}', "not UTF-8: invalid start byte at byte 13"),
        ({"custom_id": 3}, "custom_id: must be a text"),
        ({"prompt": "x", "structured_output": {"regex": 3}}, "structured_output.regex"),
        ({"prompt": "x", "structured_output": {}}, "structured_output: must have exactly one of"),
        ({"prompt": "x", "logit_bias": {"five": 1}}, "logit_bias: its keys must be token ids"),
        ({"body": {}, "url": "/v1/embeddings"}, "url: must be /v1/chat/completions or /v1/completions"),
        ({"body": 3, "url": "/v1/completions"}, "body: must be an object"),
        ({**chat(), "method": "GET"}, "method: must be POST, not 'GET'"),
        ({**chat(), "extra": 1}, "unknown key 'extra'"),
        (chat(stream=True), "body.stream: True is not supported"),
        (chat(functions=[]), "body.functions: is not supported"),
        (chat(tool_choice="required"), "body.tool_choice: 'required' is not supported"),
        (chat(messages=[]), "body.messages: must be a list with at least one message"),
        (chat(messages=[{"content": "x"}]), "body.messages[0].role: is required"),
        (chat(messages=[{"role": "user", "content": "x", "audio": {}}]), "body.messages[0].audio"),
        (
            chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]),
            "body.messages[0].content[0]",
        ),
        (chat(response_format={"type": "xml"}), "body.response_format"),
        (chat(top_logprobs=3), "body.logprobs"),
        (completion(), "body.prompt"),
        (completion(prompt=["a", "b"]), "body.prompt"),
        (completion(prompt="x", echo=True), "body.echo"),
    ],
)
def test_what_is_wrong_is_named(line: Any, reason: str) -> None:
    assert reason in why(line)


def test_a_wrong_line_keeps_its_id() -> None:
    item = read({**chat(stream=True), "custom_id": "mine"})
    assert isinstance(item, MalformedItem)
    assert item.custom_id == "mine"


def test_a_chat_of_openai_is_read() -> None:
    item = read(
        chat(
            messages=[
                {
                    "role": "system",
                    "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}],
                },
                {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
                {"role": "tool", "content": "42", "tool_call_id": "1"},
            ],
            max_completion_tokens=7,
            temperature=0.5,
            n=2,
            stop="END",
            user="me",
            logprobs=True,
            top_logprobs=2,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "object"}},
            },
            tools=[{"type": "function"}],
            logit_bias={"7": -1},
            stream=False,
            presence_penalty=None,
        )
    )
    assert item["messages"][0] == {"role": "system", "content": "Be brief."}
    assert item["messages"][1] == {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}
    assert (item["max_tokens"], item["temperature"], item["n"], item["stop"]) == (7, 0.5, 2, "END")
    assert (item["logprobs"], item["logit_bias"]) == (2, {7: -1})
    assert item["structured_output"] == JsonSchema({"type": "object"})
    assert not wire_item(0, item).malformed


def test_a_completion_of_openai_is_read() -> None:
    assert read(completion(prompt="x"))["max_tokens"] == 16
    assert read(completion(prompt=["x"], max_tokens=3))["prompt"] == "x"
    item = read(completion(prompt=[1, 2], logprobs=3, top_k=5))
    assert (item["prompt_token_ids"], item["logprobs"], item["top_k"]) == ([1, 2], 3, 5)
    assert not wire_item(0, item).malformed


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("2h", 7200), ("1h30m", 5400), ("1.5d", 129_600), ("1W", 604_800)],
)
def test_times_are_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "soon", "2 hours", "nan", "inf", "h", "1h-3m"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a time"):
        seconds_of(text)


def test_times_are_told() -> None:
    assert [short(s) for s in (-3, 59.6, 61, 3700, 90_000)] == ["0s", "1m00s", "1m01s", "1h01m", "1d01h"]
