"""The events of a streamed answer, from the messages of its requests. Pure.

A message becomes one event for each choice that it brings something of, whatever number of tokens that is.
What all events have in common is written once; a delta that is only text costs no more than its escaping.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from json import JSONEncoder
from json.encoder import encode_basestring as quoted

from chiron.v1 import inference_pb2 as pb
from services.router.http.head import Head, fingerprint, summed, usage
from services.router.http.logprobs import Tokens

_json = JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class Chunks(ABC):
    """Writes one answer."""

    kind: str
    """`object` of the events."""
    before_text: str
    """Between a choice's index and its text, where a delta is only that."""
    after_text: str

    def __init__(
        self,
        head: Head,
        *,
        requests: int = 1,
        choices: int = 1,
        counts: bool = False,
        logprobs: bool = False,
    ) -> None:
        """An answer of which nothing has been written.

        Args:
            head: of the answer.
            requests: whose messages it is made of.
            choices: of each request, copies included.
            counts: whether the token counts come at its end.
            logprobs: whether log probabilities were asked for.
        """
        self._head = head
        self._choices = choices
        self._counts = counts
        self._open = requests
        self.usage = pb.Usage()
        """Of the requests that have ended."""
        self._start = self._before = self._after = ""
        self._end = ',"usage":null}\n\n' if counts else "}\n\n"
        self._plain = not (head.token_ids or logprobs or head.copies > 1)
        self._begun: set[int] = set()
        self._lengths: dict[int, int] = {}

    @property
    def complete(self) -> bool:
        """Whether the last event of each request has been written."""
        return self._open == 0

    def take(self, message: pb.GenerateResponse, request: int = 0) -> str:
        """The events of a message; empty: it brings nothing that is to be told.

        Args:
            message: of a stream.
            request: whose, from 0.

        Raises:
            ChironError: the engine gave a choice up.
        """
        told = ""
        for delta in message.deltas:
            index = request * self._choices + delta.choice
            if self._plain and index in self._begun and not delta.finish_reason:
                text = self.only_text(delta)
                if text is not None:
                    if text:
                        told += f"{self._before}{index}{self.before_text}{quoted(text)}{self._after}"
                    continue
            if not self._start:
                self._begin(delta.origin.spec_version)
            for each in range(index, index + self._head.copies):
                told += self._event(each, delta)
            if delta.HasField("usage"):
                told += self._ended(delta.usage)
        return told

    def _begin(self, spec_version: int) -> None:
        head = self._head
        common: dict[str, object] = {
            "id": head.id,
            "object": self.kind,
            "created": head.created,
            "model": head.model,
            "system_fingerprint": fingerprint(head.model, spec_version),
        }
        if head.tier:
            common["service_tier"] = head.tier
        self._start = f'data: {_json(common)[:-1]},"choices":['
        self._before = f'{self._start}{{"index":'
        self._after = f"{self.after_text}]{self._end}"

    def _event(self, index: int, delta: pb.OutputDelta) -> str:
        choice: dict[str, object] = {"index": index}
        tokens: Tokens | None = None
        if delta.logprobs:
            start = self._lengths.get(index, 0)
            self._lengths[index] = start + len(delta.text)
            tokens = Tokens(
                delta.text,
                delta.token_ids,
                delta.text_ends,
                delta.logprobs,
                start=start,
                as_ids=self._head.tokens_as_ids,
            )
        self.describe(choice, delta, tokens, first=index not in self._begun)
        self._begun.add(index)
        if delta.stop_match:
            choice["stop_reason"] = delta.stop_match
        if self._head.token_ids:
            choice["token_ids"] = list(delta.token_ids)
        return f"{self._start}{_json(choice)}]{self._end}"

    @abstractmethod
    def only_text(self, delta: pb.OutputDelta) -> str | None:
        """The text of a delta that brings nothing else; None: it does."""

    @abstractmethod
    def describe(
        self, choice: dict[str, object], delta: pb.OutputDelta, tokens: Tokens | None, *, first: bool
    ) -> None:
        """Writes what a choice gained.

        Args:
            choice: takes it; it has its index.
            delta: what it gained.
            tokens: the same with log probabilities, where they were asked for.
            first: whether it is the first that is told of the choice.

        Raises:
            ChironError: the engine gave it up.
        """

    def _ended(self, counts: pb.Usage) -> str:
        self.usage = summed((self.usage, counts))
        self._open -= 1
        if self._open or not self._counts:
            return ""
        return f'{self._start}],"usage":{_json(usage(self.usage, self._head.copies))}}}\n\n'
