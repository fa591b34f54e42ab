"""Judges how a request ended, and every token on the way, against the undisturbed answer. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum

from chiron.client import (
    CannotResume,
    ChironError,
    Choice,
    Chunk,
    Completion,
    Overloaded,
    ProtocolError,
    StreamInterrupted,
    Unavailable,
)
from tests.soak.expected import Answer, Written


class End(StrEnum):
    """How a request ended."""

    FINISHED = "finished"
    """With its whole answer."""
    CANCELLED = "cancelled"
    """By its own reader."""
    REFUSED = "refused"
    """Before its first token, with UNAVAILABLE or RESOURCE_EXHAUSTED and a reason, all attempts spent."""
    NOT_RESUMED = "not_resumed"
    """After its first token, with ABORTED and the reason CANNOT_RESUME, and rightly so."""
    LOST = "lost"
    """In any other way, or not at all within its time."""


class Fault(StrEnum):
    """What a stream did that no stream may do."""

    DUPLICATED = "duplicated"
    """A token, an end or a usage came again."""
    TOKEN = "token"
    """A token, its text, its place or the counts are not those of the undisturbed answer."""


class Reading:
    """What one reader has got so far."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._choices = [_Progress(choice) for choice in answer.choices]
        self.attempts = 1
        self.faults: list[tuple[Fault, str]] = []
        """What was wrong, in the order of its coming."""
        self._counted = False

    @property
    def tokens(self) -> int:
        """Delivered, of all choices."""
        return sum(choice.tokens for choice in self._choices)

    @property
    def begun(self) -> bool:
        """True once anything was delivered."""
        return any(choice.tokens or choice.ended for choice in self._choices)

    def add(self, chunk: Chunk) -> None:
        """Takes in one chunk."""
        self.attempts = chunk.attempts
        if self._counted:
            self._note(Fault.DUPLICATED, "a chunk came after the last one")
        if chunk.choice >= len(self._choices):
            self._note(Fault.TOKEN, f"choice {chunk.choice} of {len(self._choices)}")
            return
        self.faults += self._choices[chunk.choice].add(chunk)
        if chunk.usage is not None:
            self._counted = True
            self._count(chunk.usage.prompt_tokens, chunk.usage.completion_tokens)

    def add_whole(self, completion: Completion) -> None:
        """Takes in a whole answer."""
        self.attempts = completion.attempts
        if len(completion.choices) != len(self._choices):
            self._note(Fault.TOKEN, f"{len(completion.choices)} choices instead of {len(self._choices)}")
        for choice, progress in zip(completion.choices, self._choices, strict=False):
            self.faults += progress.add_whole(choice)
        self._count(completion.usage.prompt_tokens, completion.usage.completion_tokens)

    def end(self, error: BaseException | None, *, cancelled: bool = False, resumable: bool = True) -> End:
        """How it ended.

        Args:
            error: that it ended with; TimeoutError: not within its time; None: none.
            cancelled: its reader gave it up.
            resumable: the contract says that it can be resumed.
        """
        match error:
            case None if cancelled:
                return End.CANCELLED
            case None:
                if not all(choice.ended for choice in self._choices):
                    self._note(Fault.TOKEN, "the stream ended without a finish reason")
                return End.FINISHED
            case ProtocolError():
                self._note(Fault.DUPLICATED if "repeated" in error.message else Fault.TOKEN, error.message)
                return End.LOST
            case StreamInterrupted():
                self._delivered(error.delivered)
            case CannotResume():
                self._delivered(error.delivered)
                if not resumable:
                    return End.NOT_RESUMED
            case Unavailable() | Overloaded() if not self.begun and error.reason:
                return End.REFUSED
        return End.LOST

    def _count(self, prompt_tokens: int, completion_tokens: int) -> None:
        wanted = (self._answer.prompt_tokens, self._answer.completion_tokens)
        if (prompt_tokens, completion_tokens) != wanted:
            self._note(
                Fault.TOKEN, f"usage is {(prompt_tokens, completion_tokens)} tokens instead of {wanted}"
            )

    def _delivered(self, choices: Sequence[Choice]) -> None:
        """What the error says was delivered is what was."""
        for told, progress in zip(choices, self._choices, strict=False):
            if (len(told.token_ids), told.text) != (progress.tokens, progress.text):
                self._note(Fault.TOKEN, "the error tells of other tokens than were delivered")

    def _note(self, fault: Fault, text: str) -> None:
        self.faults.append((fault, text))


class _Progress:
    """One choice as far as it came."""

    def __init__(self, wanted: Written) -> None:
        self._wanted = wanted
        self.tokens = 0
        self.text = ""
        self.ended = False

    def add(self, chunk: Chunk) -> Iterator[tuple[Fault, str]]:
        """Takes in one chunk and tells what is wrong with it."""
        first, wanted = chunk.first_token_index, self._wanted
        past = first + len(chunk.token_ids)
        if first < self.tokens:
            yield Fault.DUPLICATED, f"token {first} came again; {self.tokens} were there"
        elif first > self.tokens:
            yield Fault.TOKEN, f"token {self.tokens} was skipped; {first} came"
        if chunk.token_ids != wanted.token_ids[first:past]:
            yield Fault.TOKEN, f"tokens {first} to {past - 1} differ"
        if chunk.text_ends != wanted.text_ends[first:past]:
            yield Fault.TOKEN, f"the text's ends at tokens {first} to {past - 1} differ"
        self.tokens = max(self.tokens, past)
        if self.ended and (chunk.text or chunk.token_ids):
            yield Fault.DUPLICATED, "more came after the end"
        self.text += chunk.text
        if not wanted.text.startswith(self.text):
            yield Fault.TOKEN, f"the first {len(self.text)} characters are not those of the undisturbed text"
        if chunk.finish_reason is not None and not self.ended:
            self.ended = True
            yield from self._whole(chunk.finish_reason, chunk.stop_match)

    def add_whole(self, choice: Choice) -> Iterator[tuple[Fault, str]]:
        """Takes in the whole choice and tells what is wrong with it."""
        self.tokens, self.text, self.ended = len(choice.token_ids), choice.text, True
        if choice.token_ids != self._wanted.token_ids:
            yield Fault.TOKEN, "the tokens of the whole answer differ"
        yield from self._whole(choice.finish_reason, choice.stop_match)

    def _whole(self, finish_reason: str | None, stop_match: str) -> Iterator[tuple[Fault, str]]:
        wanted = self._wanted
        for what, got, right in (
            ("tokens", self.tokens, len(wanted.token_ids)),
            ("text", self.text, wanted.text),
            ("finish reason", str(finish_reason), wanted.finish_reason),
            ("stop match", stop_match, wanted.stop_match),
        ):
            if got != right:
                yield Fault.TOKEN, f"{what} at the end: {got!r} instead of {right!r}"


def describe(error: BaseException) -> str:
    """The error's class, reason, text and notes on one line."""
    reason = f" {error.reason}" if isinstance(error, ChironError) else ""
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    return f"{type(error).__name__}{reason}: {' '.join(str(error).split())}{notes}"
