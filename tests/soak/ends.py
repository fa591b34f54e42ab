"""Judges how a request ended, and every token on the way, against the undisturbed answer. Pure."""

from __future__ import annotations

from enum import StrEnum

from chiron.client import (
    Aborted,
    ChironError,
    Chunk,
    Completion,
    Overloaded,
    ProtocolError,
    StreamInterrupted,
    Unavailable,
)
from tests.soak.expected import Answer


class End(StrEnum):
    """How a request ended."""

    FINISHED = "finished"
    """With its whole answer."""
    CANCELLED = "cancelled"
    """By its own reader."""
    REFUSED = "refused"
    """Before its first token, with UNAVAILABLE or RESOURCE_EXHAUSTED and a reason, all attempts spent."""
    INTERRUPTED = "interrupted"
    """After its first token, with UNAVAILABLE and the reason STREAM_INTERRUPTED."""
    NOT_RESUMED = "not_resumed"
    """After its first token, with ABORTED and the reason why it cannot be resumed."""
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
        self.tokens = 0
        self.text = ""
        self.attempts = 1
        self.faults: list[tuple[Fault, str]] = []
        """What was wrong, in the order of its coming."""
        self._ended = False
        self._counted = False

    @property
    def begun(self) -> bool:
        """True once anything was delivered."""
        return self.tokens > 0 or self._ended

    def add(self, chunk: Chunk) -> None:
        """Takes in one chunk."""
        self.attempts = chunk.attempts
        if self._counted:
            self._note(Fault.DUPLICATED, "a chunk came after the last one")
        if chunk.first_token_index < self.tokens:
            self._note(
                Fault.DUPLICATED, f"token {chunk.first_token_index} came again; {self.tokens} were there"
            )
        elif chunk.first_token_index > self.tokens:
            self._note(Fault.TOKEN, f"token {self.tokens} was skipped; {chunk.first_token_index} came")
        self._compare(chunk.first_token_index, chunk)
        self.tokens = max(self.tokens, chunk.first_token_index + len(chunk.token_ids))
        if chunk.text and self._ended:
            self._note(Fault.DUPLICATED, "text came after the end")
        self.text += chunk.text
        if not self._answer.text.startswith(self.text):
            self._note(Fault.TOKEN, f"the text is not the undisturbed one from its {len(self.text)} first on")
        if chunk.finish_reason is not None and not self._ended:
            self._ended = True
            self._whole(chunk.finish_reason, chunk.stop_match)
        if chunk.usage is not None:
            self._counted = True
            self._count(chunk.usage.prompt_tokens, chunk.usage.completion_tokens)

    def add_whole(self, completion: Completion) -> None:
        """Takes in a whole answer."""
        choice = completion.choices[0]
        self.attempts = completion.attempts
        if choice.token_ids != self._answer.token_ids:
            self._note(Fault.TOKEN, "the tokens of the whole answer differ")
        self.tokens, self.text, self._ended = len(choice.token_ids), choice.text, True
        if choice.finish_reason is None:
            self._note(Fault.TOKEN, "a whole answer without a finish reason")
        else:
            self._whole(choice.finish_reason, choice.stop_match)
        self._count(completion.usage.prompt_tokens, completion.usage.completion_tokens)

    def end(self, error: BaseException | None, *, cancelled: bool = False) -> End:
        """How it ended: with this error, given up by its reader, or well.

        TimeoutError stands for no end within the time.
        """
        if error is None:
            if cancelled:
                return End.CANCELLED
            if not self._ended:
                self._note(Fault.TOKEN, "the stream ended without a finish reason")
            return End.FINISHED
        match error:
            case ProtocolError():
                self._note(Fault.DUPLICATED if "repeated" in error.message else Fault.TOKEN, error.message)
                return End.LOST
            case StreamInterrupted():
                self._delivered(error)
                return End.INTERRUPTED
            case Aborted() if error.reason == "CANNOT_RESUME":
                return End.NOT_RESUMED
            case Unavailable() | Overloaded() if not self.begun and error.reason:
                return End.REFUSED
        return End.LOST

    def _compare(self, first: int, chunk: Chunk) -> None:
        answer, past = self._answer, first + len(chunk.token_ids)
        if chunk.token_ids != answer.token_ids[first:past]:
            self._note(Fault.TOKEN, f"tokens {first} to {past - 1} differ")
        if chunk.text_ends != answer.text_ends[first:past]:
            self._note(Fault.TOKEN, f"the text's ends at tokens {first} to {past - 1} differ")

    def _whole(self, finish_reason: str, stop_match: str) -> None:
        answer = self._answer
        for what, got, wanted in (
            ("tokens", self.tokens, len(answer.token_ids)),
            ("text", self.text, answer.text),
            ("finish reason", str(finish_reason), answer.finish_reason),
            ("stop match", stop_match, answer.stop_match),
        ):
            if got != wanted:
                self._note(Fault.TOKEN, f"{what} at the end: {got!r} instead of {wanted!r}")

    def _count(self, prompt_tokens: int, completion_tokens: int) -> None:
        wanted = (self._answer.prompt_tokens, len(self._answer.token_ids))
        if (prompt_tokens, completion_tokens) != wanted:
            self._note(
                Fault.TOKEN, f"usage is {(prompt_tokens, completion_tokens)} tokens instead of {wanted}"
            )

    def _delivered(self, error: StreamInterrupted) -> None:
        """What the error says was delivered is what was."""
        if error.delivered and (
            len(error.delivered[0].token_ids) != self.tokens or error.delivered[0].text != self.text
        ):
            self._note(Fault.TOKEN, "the error tells of other tokens than were delivered")

    def _note(self, fault: Fault, text: str) -> None:
        self.faults.append((fault, text))


def describe(error: BaseException) -> str:
    """The error's class, reason and text on one line."""
    reason = f" {error.reason}" if isinstance(error, ChironError) else ""
    return f"{type(error).__name__}{reason}: {' '.join(str(error).split())}"
