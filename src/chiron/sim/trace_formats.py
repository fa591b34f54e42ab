"""How each trace format spells a request.

Formats:
- azure: Azure LLM inference traces, CSV: TIMESTAMP (ISO 8601), ContextTokens, GeneratedTokens.
- burstgpt: BurstGPT, CSV: Timestamp (seconds), Request tokens, Response tokens; other columns are ignored.
  A response of 0 tokens is a request that failed when it was recorded.
- mooncake: Mooncake, one JSON object a line: timestamp (milliseconds), input_length, output_length and
  hash_ids of 512-token prefix blocks.
- sharegpt: ShareGPT, a JSON list of conversations; the first human turn is the prompt, the answer to it the
  output. It records neither times nor tokens: lengths are estimated as one token for 4 characters.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

CHARACTERS_PER_TOKEN = 4
"""Rule of thumb for English text with tokenizers of 32,000 to 128,000 entries."""
MOST_LINE = 1_000_000
"""Characters in a line of CSV or JSON lines: a longer one is no trace."""
_MOST_TEXT = 2_000_000_000
"""Characters in a file that is read whole."""
_LONGEST_SHOWN = 80
"""Characters of a value in a message."""
_MOST_TOKENS = 2**31 - 1
_MOONCAKE_BLOCK = 512
_HUMAN = ("human", "user")
_MODEL = ("gpt", "chatgpt", "bard", "bing", "assistant", "model")


class TraceError(ValueError):
    """A trace that cannot be used; one line that names the file."""


class Row(NamedTuple):
    """One request of a trace."""

    time_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


class Skipped(NamedTuple):
    """A well-formed row without a request to serve."""

    reason: str


Entries = Iterator[tuple[int, Row | Skipped | str]]
"""(line from 1, the request, or why there is none, or what is malformed)."""


@dataclass(frozen=True, slots=True)
class TraceFormat:
    """One format."""

    rows: Callable[[Path, IO[str]], Entries]
    timed: bool = True
    """Records arrival times."""
    block_tokens: int = 0
    """Tokens in a prefix block; 0: it records none."""
    estimated: bool = False
    """Lengths are estimates."""


def _csv_rows(
    columns: Sequence[str], parse: Callable[[Sequence[str]], Row | Skipped]
) -> Callable[[Path, IO[str]], Entries]:
    def rows(file: Path, stream: IO[str]) -> Entries:
        lines = _lines(file, stream)
        names = _header(file, next(lines, (1, ""))[1])
        missing = [column for column in columns if column not in names]
        if missing:
            has = shown(", ".join(names), str)
            raise TraceError(f"{file}:1: no column {', '.join(missing)}; the header has {has}")
        for column in columns:
            if names.count(column) > 1:
                raise TraceError(f"{file}:1: column {column} is there {names.count(column)} times")
        index = [names.index(column) for column in columns]
        # Line by line, so that an unbalanced quote spoils its own row and none after it.
        for line, text in lines:
            if text.strip():
                yield line, _csv_row(text, index, len(names), parse)

    return rows


def _header(file: Path, text: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([text.lstrip("\ufeff")]), [])]
    except csv.Error as error:
        raise TraceError(f"{file}:1: no header of a CSV file: {error}") from None


def _lines(file: Path, stream: IO[str]) -> Iterator[tuple[int, str]]:
    """Numbered lines, from 1. Raises TraceError for one without end."""
    for line in itertools.count(1):
        text = stream.readline(MOST_LINE + 1)
        if not text:
            return
        if len(text) > MOST_LINE:
            raise TraceError(f"{file}:{line}: more than {MOST_LINE:,} characters in a line: no trace?")
        yield line, text


def shown(value: object, text: Callable[[object], str] = repr) -> str:
    """A value for a message: cut, and without characters that a terminal would obey."""
    whole = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text(value))
    return whole if len(whole) <= _LONGEST_SHOWN else f"{whole[: _LONGEST_SHOWN - 1]}…"


def _csv_row(
    text: str, index: Sequence[int], width: int, parse: Callable[[Sequence[str]], Row | Skipped]
) -> Row | Skipped | str:
    try:
        cells = next(csv.reader([text]))
        if len(cells) != width:
            return f"{len(cells)} cells in a row, {width} in the header"
        return parse([cells[at].strip() for at in index])
    except (ValueError, csv.Error) as error:
        return str(error)


def _azure(cells: Sequence[str]) -> Row:
    time, prompt, output = cells
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        raise ValueError(f"TIMESTAMP: not a time: {shown(time)}") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return Row(moment.timestamp(), _tokens("ContextTokens", prompt), _tokens("GeneratedTokens", output))


def _burstgpt(cells: Sequence[str]) -> Row | Skipped:
    time, prompt, output = cells
    seconds = _since_start("Timestamp", time)
    prompt_tokens = _tokens("Request tokens", prompt)
    if _whole("Response tokens", output) == 0:
        return Skipped("Response tokens 0: it failed when it was recorded")
    return Row(seconds, prompt_tokens, _tokens("Response tokens", output))


def _mooncake_rows(file: Path, stream: IO[str]) -> Entries:
    for line, text in _lines(file, stream):
        if text.strip():
            try:
                yield line, _mooncake(json.loads(text))
            except json.JSONDecodeError as error:
                yield line, f"not JSON: {error.msg}"
            except (ValueError, RecursionError) as error:
                yield line, str(error)


def _mooncake(entry: Any) -> Row:
    if not isinstance(entry, dict):
        raise ValueError("must be a JSON object")
    for key in ("timestamp", "input_length", "output_length", "hash_ids"):
        if key not in entry:
            raise ValueError(f"no key {key!r}")
    prompt = _tokens("input_length", entry["input_length"])
    blocks = entry["hash_ids"]
    if not isinstance(blocks, list) or not all(type(block) is int for block in blocks):
        raise ValueError("hash_ids: must be a list of integers")
    wanted = math.ceil(prompt / _MOONCAKE_BLOCK)
    if len(blocks) != wanted:
        raise ValueError(
            f"hash_ids: {len(blocks)} blocks for input_length {prompt}, "
            f"which has {wanted} of {_MOONCAKE_BLOCK}"
        )
    milliseconds = _since_start("timestamp", entry["timestamp"])
    return Row(milliseconds / 1e3, prompt, _tokens("output_length", entry["output_length"]), tuple(blocks))


def _sharegpt_rows(file: Path, stream: IO[str]) -> Entries:
    # What cannot be a list is told before a file that may be without end is read to its end.
    text = stream.read(MOST_LINE)
    if text[_after(text, 0) :][:1] not in ("[", ""):
        raise TraceError(f"{file}:1: must be a JSON list of conversations")
    text += stream.read(_MOST_TEXT)
    if len(text) > _MOST_TEXT:
        raise TraceError(f"{file}: more than {_MOST_TEXT:,} characters")
    decoder = json.JSONDecoder()
    at, line, counted = _after(text, 0), 1, 0
    if text[at : at + 1] != "[":
        raise TraceError(f"{file}:1: must be a JSON list of conversations")
    at = _after(text, at + 1)
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            entry, at = decoder.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError) as error:
            # Where a broken entry ends cannot be known: nothing after it is read, whatever the mode.
            raise TraceError(f"{file}:{line}: not JSON: {error}; the rest cannot be read") from None
        yield line, _conversation(entry)
        at = _after(text, at)
        if text[at : at + 1] == ",":
            at = _after(text, at + 1)
        elif text[at : at + 1] != "]":
            raise TraceError(f"{file}:{line}: no comma or ] after the entry that begins here")
    end = _after(text, at + 1)
    if end < len(text):
        yield 1 + text.count("\n", 0, end), f"text after the closing ]: {text[end : end + 20]!r}"


def _after(text: str, at: int) -> int:
    """Where the next character stands that is no white space."""
    while at < len(text) and text[at] in " \t\r\n\ufeff":
        at += 1
    return at


def _conversation(entry: Any) -> Row | Skipped | str:
    turns = entry.get("conversations") if isinstance(entry, dict) else None
    if not isinstance(turns, list):
        return "no list 'conversations'"
    for turn in turns:
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str) or "from" not in turn:
            return "conversations: a turn without 'from' and a text 'value'"
    for question, answer in itertools.pairwise(turns):
        if question["from"] in _HUMAN and answer["from"] in _MODEL:
            prompt, output = (
                math.ceil(len(turn["value"]) / CHARACTERS_PER_TOKEN) for turn in (question, answer)
            )
            return Row(0.0, prompt, output) if prompt and output else Skipped("an empty turn")
    return Skipped("no question with an answer")


def _tokens(key: str, value: Any) -> int:
    count = _whole(key, value)
    if not 1 <= count <= _MOST_TOKENS:
        raise ValueError(f"{key}: must be from 1 to {_MOST_TOKENS}, not {shown(count)}")
    return count


def _whole(key: str, value: Any) -> int:
    """A whole number, also spelled as tables with gaps spell their columns: 5.0."""
    try:
        if isinstance(value, bool) or not _is_plain(value):
            raise ValueError
        digits = isinstance(value, str) and value.lstrip("+-").isdigit()
        number = float(value) if isinstance(value, str) and not digits else value
        if isinstance(number, float) and not number.is_integer():
            raise ValueError
        return int(number)
    except (TypeError, ValueError):
        raise ValueError(f"{key}: not a whole number: {shown(value)}") from None


def _is_plain(value: Any) -> bool:
    """No text, or a number as files spell it: Python also takes 1_0 and the digits of other scripts."""
    return not isinstance(value, str) or (value.isascii() and "_" not in value)


def _seconds(key: str, value: Any) -> float:
    try:
        if isinstance(value, bool) or not _is_plain(value):
            raise ValueError
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{key}: not a number: {shown(value)}") from None
    if not math.isfinite(number):
        raise ValueError(f"{key}: not finite: {shown(value)}")
    return number


def _since_start(key: str, value: Any) -> float:
    number = _seconds(key, value)
    if number < 0:
        raise ValueError(f"{key}: must not be negative: {shown(value)}")
    return number


FORMATS: Mapping[str, TraceFormat] = {
    "azure": TraceFormat(_csv_rows(("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _azure)),
    "burstgpt": TraceFormat(_csv_rows(("Timestamp", "Request tokens", "Response tokens"), _burstgpt)),
    "mooncake": TraceFormat(_mooncake_rows, block_tokens=_MOONCAKE_BLOCK),
    "sharegpt": TraceFormat(_sharegpt_rows, timed=False, estimated=True),
}
"""By name."""
