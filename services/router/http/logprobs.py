"""Log probabilities as the two kinds of answers have them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from chiron.v1 import inference_pb2 as pb

_UNLIKELY = -9999.0
"""Stands for what has no number: JSON knows no infinity."""
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Tokens:
    """Sampled tokens with what they have released: joined, the texts are the text that the caller gets."""

    __slots__ = ("as_ids", "ends", "ids", "logprobs", "start", "text")

    def __init__(
        self,
        text: str,
        ids: Sequence[int],
        ends: Sequence[int],
        logprobs: Sequence[pb.TokenLogprobs],
        *,
        start: int = 0,
        as_ids: bool = False,
    ) -> None:
        """A run of tokens of one choice.

        Args:
            text: that they released.
            ids: of the tokens.
            ends: for each token, the length of the choice's text once it is out, in code points.
            logprobs: for each token.
            start: length of the choice's text before them, in code points.
            as_ids: whether tokens are named by their ids.
        """
        self.text, self.ids, self.ends, self.logprobs = text, ids, ends, logprobs
        self.start, self.as_ids = start, as_ids

    def texts(self) -> list[str]:
        """The text of each token; empty where it released none."""
        if self.as_ids:
            return [_named(token) for token in self.ids]
        found, at = [], 0
        for end in self.ends:
            found.append(self.text[at : end - self.start])
            at = end - self.start
        return found

    def alternative(self, other: pb.TokenAlternative) -> str:
        """The text of a token that might have been sampled."""
        return _named(other.token_id) if self.as_ids else other.text


def chat(tokens: Tokens) -> dict[str, object]:
    """`logprobs` of a chat's choice."""
    content = []
    for text, found in zip(tokens.texts(), tokens.logprobs, strict=True):
        entry = _entry(text, found.logprob)
        entry["top_logprobs"] = [
            _entry(tokens.alternative(each), each.logprob) for each in found.alternatives
        ]
        content.append(entry)
    return {"content": content, "refusal": None}


def completion(tokens: Tokens) -> dict[str, list[object]]:
    """`logprobs` of a completion's choice. The sampled token is always among the likely ones."""
    offsets = [tokens.start, *tokens.ends][: len(tokens.ends)]
    top: list[object] = []
    texts = tokens.texts()
    for token, text, found in zip(tokens.ids, texts, tokens.logprobs, strict=True):
        likely: dict[str, float] = {}
        for each in found.alternatives:
            likely.setdefault(tokens.alternative(each), _number(each.logprob))
        if all(each.token_id != token for each in found.alternatives):
            likely.setdefault(text, _number(found.logprob))
        top.append(likely)
    return {
        "tokens": [*texts],
        "token_logprobs": [_number(found.logprob) for found in tokens.logprobs],
        "top_logprobs": top,
        "text_offset": [*offsets],
    }


def _entry(text: str, logprob: float) -> dict[str, object]:
    # A part of a character has no text of its own, and what stands for it is not its bytes.
    octets = None if _INCOMPLETE in text else list(text.encode())
    return {"token": text, "logprob": _number(logprob), "bytes": octets}


def _number(logprob: float) -> float:
    return logprob if logprob > _UNLIKELY else _UNLIKELY


def _named(token: int) -> str:
    return f"token_id:{token}"
