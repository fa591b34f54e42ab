"""How an engine brings about and reads the calls of tools: its interface for requests with tools."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chiron.v1 import inference_pb2 as pb


class CallParser(abc.ABC):
    """Tells calls and content apart in the output of one choice.

    It is fed token by token. What it has yielded in all after a token is a function of the tokens and the
    text so far, so that a parser that is taken through what another one has seen goes on in its place.
    """

    @abc.abstractmethod
    def feed(self, token_ids: Sequence[int], text: str, *, finished: bool) -> pb.ParsedDelta:
        """What a token and the text that it released bring.

        Args:
            token_ids: one token; none where only text is left that was held back.
            text: what it released, maybe nothing.
            finished: the output ends here; what is held back must come out.

        Returns:
            Content and pieces of calls. A call's first piece has its name and, where the model's template
            is particular about them, an id whose form counts; `error` stays unset.

        What it raises ends the parsing, not the stream.
        """


@dataclass(frozen=True, slots=True)
class Calls:
    """How the calls of one request come about."""

    sampling: pb.SamplingParams
    """The request's parameters with what its calls need: constraints, special tokens in the text."""
    parser: Callable[[Sequence[int]], CallParser]
    """Makes the parser of one choice from the prompt's token ids."""
