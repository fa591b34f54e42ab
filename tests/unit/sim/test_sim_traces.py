"""Traces: each format from a hand-made file, malformed rows included."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from chiron.sim.trace_formats import TraceError
from chiron.sim.traces import (
    compressed,
    prefix_hashes,
    read_trace,
)

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
not a time,879,55
2023-11-16 18:15:47.0000000,91,x

2023-11-16 18:15:47.6805900,10,0
2023-11-16 18:15:51.6805900,7
2023-11-16 18:15:48.6805900,"12,5
2023-11-16 18:15:48.1805900,91,16
"""

BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
118,GPT-4,417,276,693,API log
later,GPT-4,417,276,693,API log
120.5,GPT-4,-3,276,273,API log
"""


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_azure_rows_are_read_in_order_of_time_and_bad_ones_reported_by_line(tmp_path: Path) -> None:
    file = write(tmp_path, "azure.csv", AZURE)

    trace = read_trace(file, "azure", strict=False)

    assert trace.arrival_s is not None
    np.testing.assert_allclose(trace.arrival_s, [0.0, 1.5, 4.314579], atol=1e-6)
    assert trace.prompt_tokens.tolist() == [374, 91, 396]
    assert trace.output_tokens.tolist() == [44, 16, 109]
    assert [bad.line for bad in trace.bad_rows] == [4, 5, 7, 8, 9]
    told = [str(bad) for bad in trace.bad_rows]
    assert told[0] == f"{file}:4: TIMESTAMP: not a time: 'not a time'"
    assert told[1] == f"{file}:5: GeneratedTokens: not a whole number: 'x'"
    assert "GeneratedTokens: must be from 1" in told[2]
    assert told[3] == f"{file}:8: 2 cells in a row, 3 in the header"


def test_strict_reading_ends_at_the_first_bad_row(tmp_path: Path) -> None:
    file = write(tmp_path, "azure.csv", AZURE)

    with pytest.raises(TraceError, match=r"azure\.csv:4: TIMESTAMP: not a time"):
        read_trace(file, "azure", strict=True)


def test_azure_times_may_carry_an_offset(tmp_path: Path) -> None:
    rows = "2024-05-10 00:00:00.009930+00:00,1,2\n2024-05-10 02:00:01.009930+02:00,3,4\n"
    file = write(tmp_path, "azure.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)

    trace = read_trace(file, "azure", strict=True)

    assert trace.arrival_s is not None
    assert trace.arrival_s.tolist() == pytest.approx([0.0, 1.0])


def test_burstgpt_failures_are_skipped_and_counted_apart(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, "burst.csv", BURSTGPT), "burstgpt", strict=False)

    assert trace.arrival_s is not None
    assert trace.arrival_s.tolist() == [0.0, 113.0]
    assert trace.prompt_tokens.tolist() == [472, 417]
    assert trace.output_tokens.tolist() == [18, 276]
    assert trace.skipped == {"Response tokens 0: it failed when it was recorded": 1}
    assert [(bad.line, bad.problem.split(":")[0]) for bad in trace.bad_rows] == [
        (5, "Timestamp"),
        (6, "Request tokens"),
    ]


def test_mooncake_blocks_become_hashes_of_engine_blocks(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 1000, "input_length": 1030, "output_length": 5, "hash_ids": [7, 8, 9]},
        {"timestamp": 2500, "input_length": 512, "output_length": 6, "hash_ids": [7]},
    ]
    file = write(tmp_path, "mooncake.jsonl", "\n".join(json.dumps(row) for row in rows))

    trace = read_trace(file, "mooncake", strict=True)

    assert trace.arrival_s is not None
    assert trace.arrival_s.tolist() == [0.0, 1.5]
    assert prefix_hashes(trace, 256) == ((14, 15, 16, 17), (14, 15))
    fine = prefix_hashes(trace, 16)
    assert fine is not None
    assert [len(hashes) for hashes in fine] == [64, 32]
    assert fine[0][:32] == fine[1]
    assert len(set(fine[0])) == 64
    with pytest.raises(TraceError, match="512 tokens cannot be cut into blocks of 48"):
        prefix_hashes(trace, 48)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("{", "not JSON"),
        ("[1]", "must be a JSON object"),
        ('{"timestamp": 1, "input_length": 2, "output_length": 3}', "no key 'hash_ids'"),
        ('{"timestamp": 1, "input_length": 600, "output_length": 3, "hash_ids": [1]}', "1 blocks for"),
        ('{"timestamp": 1, "input_length": 2, "output_length": 3, "hash_ids": ["a"]}', "list of integers"),
        ('{"timestamp": 1, "input_length": 2.5, "output_length": 3, "hash_ids": [1]}', "input_length"),
        (
            '{"timestamp": NaN, "input_length": 2, "output_length": 3, "hash_ids": [1]}',
            "timestamp: not finite",
        ),
        ('{"timestamp": true, "input_length": 2, "output_length": 3, "hash_ids": [1]}', "timestamp: not a"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_bad_mooncake_row_is_reported_and_the_rest_read(tmp_path: Path, row: str, problem: str) -> None:
    good = '{"timestamp": 1, "input_length": 2, "output_length": 3, "hash_ids": [1]}'
    file = write(tmp_path, "mooncake.jsonl", f"{good}\n{row}\n{good}\n")

    trace = read_trace(file, "mooncake", strict=False)

    assert len(trace) == 2
    assert [bad.line for bad in trace.bad_rows] == [2]
    assert problem in trace.bad_rows[0].problem


def test_sharegpt_lengths_are_estimated_from_the_first_question_and_its_answer(tmp_path: Path) -> None:
    talks = [
        {"id": "a", "conversations": [_turn("human", 40), _turn("gpt", 9), _turn("human", 4000)]},
        {"id": "b", "conversations": [_turn("gpt", 100)]},
        {"id": "c"},
        {"id": "d", "conversations": [_turn("system", 8), _turn("human", 1), _turn("gpt", 400)]},
    ]
    file = write(tmp_path, "sharegpt.json", json.dumps(talks, indent=1))

    trace = read_trace(file, "sharegpt", strict=False)

    assert trace.estimated
    assert trace.arrival_s is None
    assert trace.prompt_tokens.tolist() == [10, 1]
    assert trace.output_tokens.tolist() == [3, 100]
    assert trace.skipped == {"no question with an answer": 1}
    assert [bad.problem for bad in trace.bad_rows] == ["no list 'conversations'"]
    lines = file.read_text().splitlines()
    # The entry's line is the one on which its brace opens, just before its id.
    assert '"id": "c"' in lines[trace.bad_rows[0].line]
    with pytest.raises(TraceError, match="records no arrival times"):
        compressed(trace, 5.0)


def test_sharegpt_json_that_breaks_off_says_where(tmp_path: Path) -> None:
    good = json.dumps({"conversations": [_turn("human", 4), _turn("gpt", 4)]})
    file = write(tmp_path, "sharegpt.json", f"[\n{good},\n{{broken")

    with pytest.raises(TraceError, match=r"sharegpt.json:3: not JSON"):
        read_trace(file, "sharegpt", strict=False)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "azure.csv: the file is empty"),
        ("\n", ":1: no column TIMESTAMP"),
        (
            "TIMESTAMP,ContextTokens,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,1,2,3\n",
            ":1: column ContextTokens is there 2 times",
        ),
        ("TIMESTAMP,Context\n", ":1: no column ContextTokens, GeneratedTokens; the header has"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no request in it"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nx,1,1\n", "1 malformed rows"),
    ],
)
def test_a_file_without_requests_is_an_error(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(TraceError, match=problem):
        read_trace(write(tmp_path, "azure.csv", text), "azure", strict=False)


def test_bytes_that_are_no_text_spoil_their_row_alone(tmp_path: Path) -> None:
    file = tmp_path / "azure.csv"
    head = b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,3,4\n"
    file.write_bytes(head + b"2023-11-16 18:15:46,\xff\xfe,4\n2023-11-16 18:15:47,5,6\n")

    trace = read_trace(file, "azure", strict=False)

    assert len(trace) == 2
    assert [bad.line for bad in trace.bad_rows] == [3]


def test_a_file_that_is_not_there_and_a_format_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"nowhere.csv: No such file"):
        read_trace(tmp_path / "nowhere.csv", "azure", strict=True)
    with pytest.raises(TraceError, match="unknown trace format 'csv': known are azure, burstgpt"):
        read_trace(tmp_path / "nowhere.csv", "csv", strict=True)


def _turn(speaker: str, characters: int) -> dict[str, str]:
    return {"from": speaker, "value": "x" * characters}


@pytest.mark.parametrize(
    ("times", "line", "other", "which"),
    [((1, 2, 1_700_000_000), 4, 3, "after"), ((1, 1_700_000_000, 1_700_000_001), 2, 3, "before")],
)
def test_a_wild_timestamp_is_named_with_its_line(
    times: tuple[int, ...], line: int, other: int, which: str, tmp_path: Path
) -> None:
    header, *_ = BURSTGPT.splitlines()
    rows = "\n".join([header, *(f"{time},C,5,5,10,x" for time in times)])
    file = write(tmp_path, "far.csv", rows)

    said = rf"^{file}:{line}: arrives 19,675\.9 days {which} .*\(line {other}\), at most 2 days: a wrong"
    with pytest.raises(TraceError, match=said):
        read_trace(file, "burstgpt", strict=False)


def test_a_trace_of_more_than_a_year_is_refused(tmp_path: Path) -> None:
    header, *_ = BURSTGPT.splitlines()
    days = range(0, 361, 2)
    file = write(tmp_path, "long.csv", "\n".join([header, *(f"{day * 86_400},C,5,5,10,x" for day in days)]))

    assert len(read_trace(write(tmp_path, "ok.csv", file.read_text()), "burstgpt", strict=True)) == 181
    more = "".join(f"\n{day * 86_400},C,5,5,10,x" for day in (362, 364, 366, 368))
    file.write_text(f"{file.read_text()}{more}", encoding="utf-8")
    with pytest.raises(TraceError, match=r"long\.csv:186: arrives 368\.0 days after the first request"):
        read_trace(file, "burstgpt", strict=False)


def test_text_after_a_sharegpt_list_is_a_malformed_row(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "a" * 8}, {"from": "gpt", "value": "b" * 8}]
    file = write(tmp_path, "s.json", json.dumps([{"conversations": turns}]) + "\n\ngarbage [] \n")

    trace = read_trace(file, "sharegpt", strict=False)

    assert len(trace) == 1
    assert [str(bad) for bad in trace.bad_rows] == [f"{file}:3: text after the closing ]: 'garbage [] \\n'"]
    with pytest.raises(TraceError, match="after the closing"):
        read_trace(file, "sharegpt", strict=True)


@pytest.mark.parametrize("count", ["1_0", "１０", "٣"])
def test_only_plain_digits_are_a_token_count(count: str, tmp_path: Path) -> None:
    header, good, *_ = BURSTGPT.splitlines()
    file = write(tmp_path, "d.csv", f"{header}\n{good}\n6,C,{count},5,10,x\n{count},C,5,5,10,x\n")

    assert [bad.problem for bad in read_trace(file, "burstgpt", strict=False).bad_rows] == [
        f"Request tokens: not a whole number: {count!r}",
        f"Timestamp: not a number: {count!r}",
    ]


MOONCAKE_ROW = '{{"timestamp": {}, "input_length": 2, "output_length": 3, "hash_ids": [1]}}'


@pytest.mark.parametrize(
    ("trace_format", "rows", "key"),
    [
        ("burstgpt", (BURSTGPT.splitlines()[0], "-1000000,C,5,6,11,x", "0,C,5,6,11,x"), "Timestamp"),
        ("mooncake", ("", MOONCAKE_ROW.format(-5), MOONCAKE_ROW.format(0)), "timestamp"),
    ],
)
def test_a_time_before_the_start_is_malformed(
    trace_format: str, rows: tuple[str, ...], key: str, tmp_path: Path
) -> None:
    file = write(tmp_path, "negative", "\n".join(rows))

    trace = read_trace(file, trace_format, strict=False)

    assert len(trace) == 1
    told = [str(bad).rpartition(":")[0] for bad in trace.bad_rows]
    assert told == [f"{file}:2: {key}: must not be negative"]


def test_token_counts_may_be_spelled_as_floats_but_must_be_whole(tmp_path: Path) -> None:
    header = BURSTGPT.splitlines()[0]
    rows = (
        "0.0,C,5.0,6.0,11,x",
        "1.0,C,1e2,7.00,11,x",
        "2,C,5.5,6,11,x",
        "3,C,inf,6,11,x",
        "4,C,3.0,0.0,3,x",
    )
    trace = read_trace(write(tmp_path, "f.csv", "\n".join((header, *rows))), "burstgpt", strict=False)

    assert trace.prompt_tokens.tolist() == [5, 100]
    assert trace.output_tokens.tolist() == [6, 7]
    assert [bad.problem for bad in trace.bad_rows] == [
        f"Request tokens: not a whole number: {count!r}" for count in ("5.5", "inf")
    ]
    assert sum(trace.skipped.values()) == 1


@pytest.mark.parametrize("trace_format", ["azure", "burstgpt", "mooncake", "sharegpt"])
def test_a_file_without_line_ends_is_read_no_further_than_a_line_may_be(trace_format: str) -> None:
    with pytest.raises(TraceError, match=r"^/dev/zero:1: (more than 1,000,000 char|must be a JSON list)"):
        read_trace(Path("/dev/zero"), trace_format, strict=False)


@pytest.mark.parametrize("trace_format", ["azure", "burstgpt", "mooncake", "sharegpt"])
def test_a_packed_file_is_told_as_such(trace_format: str, tmp_path: Path) -> None:
    file = tmp_path / "t.gz"
    file.write_bytes(gzip.compress(AZURE.encode()))

    with pytest.raises(TraceError, match=r"t\.gz: looks gzipped: unpack it first$"):
        read_trace(file, trace_format, strict=False)


def test_a_wrong_header_is_shown_without_control_characters_and_not_at_length(tmp_path: Path) -> None:
    file = write(tmp_path, "esc.csv", f"\x1b[31mRED,\x07{'y' * 5000}\n1,2\n")

    with pytest.raises(TraceError) as told:
        read_trace(file, "azure", strict=False)

    assert str(told.value).isprintable()
    assert r"the header has \x1b[31mRED, \x07yyy" in str(told.value)
    assert len(str(told.value)) < 300


def test_long_values_are_cut_in_messages(tmp_path: Path) -> None:
    header = BURSTGPT.splitlines()[0]
    rows = (
        "0,C,5,5,10,x",
        "0,C,5,5,10,x",
        f"{'z' * 5000},C,5,5,10,x",
        f"1,C,{'9' * 4000},5,10,x",
        "1e300,C,5,5,10,x",
    )
    file = write(tmp_path, "long.csv", "\n".join((header, *rows)))

    with pytest.raises(TraceError, match=r"long\.csv:6: arrives 1\.16e\+295 days after"):
        read_trace(file, "burstgpt", strict=False)
    file.write_text("\n".join((header, *rows[:-1])), encoding="utf-8")
    assert [len(bad.problem) < 150 for bad in read_trace(file, "burstgpt", strict=False).bad_rows] == [
        True
    ] * 2


def test_a_file_of_another_format_is_not_read_to_its_end(tmp_path: Path) -> None:
    file = write(tmp_path, "t.jsonl", "x\n" * 20_000)

    with pytest.raises(
        TraceError, match=r"its first 10,000 rows are malformed, beginning with .*:1: not JSON"
    ):
        read_trace(file, "mooncake", strict=False)
