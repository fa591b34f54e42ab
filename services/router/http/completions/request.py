"""The body of a text completion, and the requests that it comes to: one for each prompt. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from chiron.v1 import inference_pb2 as pb
from services.router.http.fields import ACCEPTED as COMMON
from services.router.http.fields import REFUSED as NOT_SERVED
from services.router.http.fields import Positive, Refusal, TextFields, refusal
from services.router.http.models import split
from services.router.http.promises import Promises
from services.router.http.reading import invalid, read
from services.router.http.sampling import most_tokens, to_sampling

MAX_PROMPTS = 64
"""Prompts of one request: they are all under way at once."""
_MAX_TOKENS = 16
"""As OpenAI has it for this endpoint."""
_EXPECTED = "expected a string, an array of strings, an array of token ids or an array of such arrays"
_LARGEST = 2**32 - 1


class CompletionRequest(TextFields):
    """What is served of it."""

    prompt: Any
    """Looked at by itself: it may be long, and its errors name its parts."""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Positive | None = None


ACCEPTED = COMMON
REFUSED: dict[str, Refusal] = NOT_SERVED | {
    "echo": refusal("prompts are not sent back: their tokens have no log probabilities here", False),
    "suffix": refusal("text is not inserted, only continued", ""),
    "add_special_tokens": refusal("prompts that are text are tokenised as the model wants it", True),
    "prompt_embeds": refusal("prompts are text or token ids"),
}


def read_completion(found: Mapping[str, Any]) -> CompletionRequest:
    """The fields of a body. Raises HttpError, for the first that does not fit."""
    request = read(CompletionRequest, found, ACCEPTED, REFUSED)
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise invalid(
            f"'best_of' ({request.best_of}) must equal 'n' ({request.n or 1}): all choices are returned.",
            "best_of",
        )
    return request


def to_generates(request: CompletionRequest, promises: Promises) -> list[pb.GenerateRequest]:
    """The requests that it comes to, in the order of its prompts. Raises HttpError."""
    prompts = _prompts(request.prompt)
    asked = most_tokens(request)
    max_tokens = _MAX_TOKENS if asked is None else asked
    sampling = to_sampling(request, max_tokens=max_tokens, logprobs=request.logprobs)
    model, adapter = split(request.model)
    found = []
    for index, prompt in enumerate(prompts):
        message = pb.GenerateRequest(model=model, adapter=adapter, sampling=sampling)
        if request.request_id:
            message.request_id = request.request_id if len(prompts) == 1 else f"{request.request_id}-{index}"
        if isinstance(prompt, str):
            message.prompt = prompt
        else:
            message.prompt_token_ids.ids.extend(prompt)
        promises.put(message)
        found.append(message)
    return found


def to_generate(request: CompletionRequest, promises: Promises) -> pb.GenerateRequest:
    """The one request that it comes to. Raises HttpError, also where it has several prompts."""
    found = to_generates(request, promises)
    if len(found) > 1:
        raise invalid(f"'prompt' must be a single one here, not {len(found)}.", "prompt")
    return found[0]


def _prompts(prompt: Any) -> list[str | list[int]]:
    if isinstance(prompt, str):
        return [_text(prompt, "prompt")]
    if not isinstance(prompt, list):
        raise invalid(f"Invalid type for 'prompt': {_EXPECTED}.", "prompt", "invalid_type")
    if not prompt:
        raise invalid("'prompt' must not be empty.", "prompt")
    if type(prompt[0]) is int:
        return [_tokens(prompt, "prompt")]
    if len(prompt) > MAX_PROMPTS:
        raise invalid(f"'prompt' may have at most {MAX_PROMPTS} prompts, not {len(prompt)}.", "prompt")
    found: list[str | list[int]] = []
    for index, each in enumerate(prompt):
        at = f"prompt[{index}]"
        if type(each) is not type(prompt[0]):
            raise invalid(f"Invalid type for '{at}': {_EXPECTED}.", at, "invalid_type")
        found.append(_text(each, at) if isinstance(each, str) else _tokens(each, at))
    return found


def _text(prompt: str, at: str) -> str:
    if not prompt:
        raise invalid(f"'{at}' must not be empty.", at)
    return prompt


def _tokens(prompt: Any, at: str) -> list[int]:
    if not isinstance(prompt, list):
        raise invalid(f"Invalid type for '{at}': {_EXPECTED}.", at, "invalid_type")
    if not prompt:
        raise invalid(f"'{at}' must not be empty.", at)
    tokens: list[int] = []
    for index, token in enumerate(prompt):
        if type(token) is not int:
            where = f"{at}[{index}]"
            raise invalid(f"Invalid type for '{where}': expected a token id.", where, "invalid_type")
        if not 0 <= token <= _LARGEST:
            raise invalid(f"'{at}[{index}]': {str(token)[:40]} is no token id.", f"{at}[{index}]")
        tokens.append(token)
    return tokens
