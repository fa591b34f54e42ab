"""What makes a request invalid before any tokenizer has seen it. Pure; the same rules at every door."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Sequence
from typing import Literal

from chiron.client.prefix import HASH_BYTES, MOST_HASHES
from chiron.requests.tools import check_tools
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2

Violation = tuple[str, str]
"""(path of the field in GenerateRequest, what is wrong with it)."""

MAX_CHOICES = 16
MAX_STOPS = 16
MAX_LOGPROBS = 20
MAX_PRIORITY = 1000
MAX_NAME = 256
"""Characters of a model's or an adapter's name."""
MAX_MESSAGES = 10_000
MAX_TOOLS = 1024
MAX_STOP_LENGTH = 1024
"""Characters of one stop string."""
MAX_TOKEN_RULES = 10_000
"""Entries of stop_token_ids, and of logit_bias."""
MAX_CONSTRAINT_BYTES = 128 * 1024
"""Of a structured_output: engines compile it, which takes them seconds where it is long."""
MAX_EXCLUDED = 1024
_MOST_TOLD = 16
"""Violations of one list that are told; the others cost nothing."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_SLO_FIELDS: tuple[Literal["ttft_ms", "itl_ms", "deadline_s"], ...] = ("ttft_ms", "itl_ms", "deadline_s")
_CHAT_ROLES = ("system", "developer", "user", "assistant", "tool")


def check_generate(
    request: pb.GenerateRequest, sampling: Callable[[pb.SamplingParams], list[Violation]] | None = None
) -> list[Violation]:
    """Every violation of a GenerateRequest, in the order of its fields; empty: none.

    Args:
        request: what is asked for.
        sampling: `check_sampling`, or one that remembers what it has said.
    """
    found = _check_head(request)
    kind = request.WhichOneof("input")
    if kind is None:
        found.append(("input", "one of prompt, prompt_token_ids or chat is required"))
    elif kind == "prompt" and not request.prompt:
        found.append(("prompt", "must not be empty"))
    elif kind == "prompt_token_ids" and not request.prompt_token_ids.ids:
        found.append(("prompt_token_ids", "must not be empty"))
    elif kind == "chat":
        found += _check_chat(request.chat) or check_tools(request)
    found += (sampling or check_sampling)(request.sampling)
    found += check_slo(request.slo)
    if request.HasField("resume"):
        found += _check_resume(request.resume, request.sampling)
    return found


def _check_resume(resume: pb.ResumeState, sampling: pb.SamplingParams) -> list[Violation]:
    found: list[Violation] = []
    delivered = len(resume.delivered_token_ids)
    if sampling.HasField("max_tokens") and delivered > sampling.max_tokens:
        text = f"must be at most max_tokens ({sampling.max_tokens}), not {delivered} tokens"
        found.append(("resume.delivered_token_ids", text))
    if resume.delivered_text_length and not delivered:
        found.append(("resume.delivered_text_length", "must be 0 without delivered tokens"))
    ttft_ms = resume.origin.ttft_ms
    if not (math.isfinite(ttft_ms) and ttft_ms >= 0):
        found.append(("resume.origin.ttft_ms", f"must be a number >= 0, not {ttft_ms:g}"))
    return found


def check_route(request: pb.RouteRequest) -> list[Violation]:
    """Every violation of a RouteRequest; empty: none."""
    found = _check_head(request) + check_slo(request.slo)
    found += _check_length(len(request.excluded_instance_ids), MAX_EXCLUDED, "excluded_instance_ids")
    return found + _check_prefixes(request.prefix_hashes)


def _check_prefixes(hashes: Sequence[bytes]) -> list[Violation]:
    found = _check_length(len(hashes), MOST_HASHES, "prefix_hashes")
    if not found and any(len(each) != HASH_BYTES for each in hashes):
        index, size = next((i, len(each)) for i, each in enumerate(hashes) if len(each) != HASH_BYTES)
        found.append((f"prefix_hashes[{index}]", f"must have {HASH_BYTES} bytes, not {size}"))
    return found


def _check_head(request: pb.GenerateRequest | pb.RouteRequest) -> list[Violation]:
    found: list[Violation] = []
    if request.request_id and not _REQUEST_ID.fullmatch(request.request_id):
        found.append(("request_id", "must be 1 to 128 characters of [A-Za-z0-9._:-]"))
    if not request.model:
        found.append(("model", "is required"))
    found += [
        (field, f"must have at most {MAX_NAME} characters, not {len(name)}")
        for field, name in (("model", request.model), ("adapter", request.adapter))
        if len(name) > MAX_NAME
    ]
    if request.request_class not in types_pb2.RequestClass.values():
        found.append(("request_class", f"unknown value {request.request_class}"))
    if abs(request.priority) > MAX_PRIORITY:
        found.append(("priority", f"must be -{MAX_PRIORITY} to {MAX_PRIORITY}, not {request.priority}"))
    if not (math.isfinite(request.elapsed_ms) and request.elapsed_ms >= 0):
        found.append(("elapsed_ms", f"must be a number >= 0, not {request.elapsed_ms:g}"))
    return found


def _check_chat(chat: pb.ChatInput) -> list[Violation]:
    if not chat.messages:
        return [("chat.messages", "must not be empty")]
    too_long = _check_length(len(chat.messages), MAX_MESSAGES, "chat.messages")
    too_long += _check_length(len(chat.tools), MAX_TOOLS, "chat.tools")
    if too_long:
        return too_long
    found: list[Violation] = []
    for index, message in enumerate(chat.messages):
        if message.role not in _CHAT_ROLES:
            what = f"must be one of {', '.join(_CHAT_ROLES)}, not {reprlib.repr(message.role)}"
            found.append((f"chat.messages[{index}].role", what))
            if len(found) == _MOST_TOLD:
                break
    return found


def _check_length(length: int, most: int, field: str) -> list[Violation]:
    return [(field, f"must have at most {most} entries, not {length}")] if length > most else []


def check_slo(slo: types_pb2.Slo, path: str = "slo") -> list[Violation]:
    """Every violation of an Slo message at `path`."""
    found = [
        (f"{path}.{name}", f"must be a number > 0, not {getattr(slo, name):g}")
        for name in _SLO_FIELDS
        if slo.HasField(name) and not (math.isfinite(getattr(slo, name)) and getattr(slo, name) > 0)
    ]
    if not found and slo.HasField("ttft_ms") and slo.HasField("deadline_s"):
        deadline_ms = 1000 * slo.deadline_s
        if deadline_ms < slo.ttft_ms:
            text = f"{deadline_ms:g} ms is before the first token is due (ttft_ms {slo.ttft_ms:g})"
            found.append((f"{path}.deadline_s", text))
    return found


def check_sampling(sampling: pb.SamplingParams) -> list[Violation]:
    """Every violation of SamplingParams, fields that contradict each other included."""
    found: list[Violation] = []

    def wrong(field: str, what: str) -> None:
        found.append((f"sampling.{field}", what))

    # Texts are made for what is wrong alone: this is done for each request.
    if sampling.HasField("max_tokens"):
        if sampling.max_tokens < 1:
            wrong("max_tokens", "must be >= 1")
        if sampling.min_tokens > sampling.max_tokens:
            least = f"must be at most max_tokens ({sampling.max_tokens}), not {sampling.min_tokens}"
            wrong("min_tokens", least)
    given = {descriptor.name for descriptor, _ in sampling.ListFields()}
    for field, low, high, low_open in _RANGES:
        # One that is not given is 0, which no range forbids but those of fields that may be left open.
        if field not in given:
            continue
        value = getattr(sampling, field)
        inside = math.isfinite(value) and (low < value if low_open else low <= value) and value <= high
        if inside:
            continue
        if field == "repetition_penalty" or math.isinf(high):
            wrong(field, f"must be a number {'>' if low_open else '>='} {low:g}, not {value:g}")
        else:
            wrong(field, f"must be in {'(' if low_open else '['}{low:g}, {high:g}], not {value:g}")
    if sampling.n > MAX_CHOICES:
        wrong("n", f"must be at most {MAX_CHOICES}, not {sampling.n}")
    if sampling.n > 1 and sampling.HasField("temperature") and sampling.temperature == 0:
        wrong("n", "must be 1 when temperature is 0: all choices would be the same")
    if "stop" in given:
        if len(sampling.stop) > MAX_STOPS:
            wrong("stop", f"at most {MAX_STOPS} strings, not {len(sampling.stop)}")
        if not all(sampling.stop):
            wrong("stop", "must not hold an empty string")
        longest = max(map(len, sampling.stop))
        if longest > MAX_STOP_LENGTH:
            wrong("stop", f"each string must have at most {MAX_STOP_LENGTH} characters, not {longest}")
    if sampling.HasField("logprobs") and sampling.logprobs > MAX_LOGPROBS:
        wrong("logprobs", f"must be at most {MAX_LOGPROBS}, not {sampling.logprobs}")
    for field in ("stop_token_ids", "logit_bias"):
        if field in given and (length := len(getattr(sampling, field))) > MAX_TOKEN_RULES:
            wrong(field, f"must have at most {MAX_TOKEN_RULES} entries, not {length}")
    if "logit_bias" in given and not all(-100 <= bias <= 100 for bias in sampling.logit_bias.values()):
        wrong("logit_bias", "each value must be in [-100, 100]")
    if sampling.HasField("structured_output"):
        found += _check_structured(sampling.structured_output)
    return found


_RANGES: tuple[tuple[str, float, float, bool], ...] = (
    ("temperature", 0.0, math.inf, False),
    ("top_p", 0.0, 1.0, True),
    ("min_p", 0.0, 1.0, False),
    ("presence_penalty", -2.0, 2.0, False),
    ("frequency_penalty", -2.0, 2.0, False),
    ("repetition_penalty", 0.0, math.inf, True),
)
_CONSTRAINTS_IN_TEXT = ("json_schema", "regex", "grammar", "structural_tag")


def _check_structured(output: pb.StructuredOutput) -> list[Violation]:
    path = "sampling.structured_output"
    kind = output.WhichOneof("constraint")
    if (size := output.ByteSize()) > MAX_CONSTRAINT_BYTES:
        return [(path, f"must have at most {MAX_CONSTRAINT_BYTES} bytes, not {size}")]
    if kind is None:
        kinds = "json_schema, json_object, regex, grammar, choice or structural_tag"
        return [(path, f"one of {kinds} is required")]
    if kind == "choice" and not (output.choice.values and all(output.choice.values)):
        return [(f"{path}.choice", "must hold non-empty strings")]
    if kind == "json_object" and not output.json_object:
        return [(f"{path}.json_object", "must be true when set")]
    if kind in _CONSTRAINTS_IN_TEXT and not getattr(output, kind):
        return [(f"{path}.{kind}", "must not be empty")]
    return []
