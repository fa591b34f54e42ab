"""Where each token ends in the text of a choice.

vLLM releases text per delta, and a delta may hold several tokens (speculative decoding, or a consumer that
lagged). The offsets within such a delta are recovered by decoding its tokens again, each with a short
window of tokens before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_WINDOW = 8
"""Tokens of context: more than one character ever spans, and what a decoder needs to know a word's start."""

_INCOMPLETE = "\ufffd"


class TextOffsets:
    """Follows one choice; lengths are in Unicode code points.

    Args:
        decode: text of a sequence of token ids.
        prompt_token_ids: the prompt; its tail is the first window.
        held_back: characters that vLLM withholds because they might begin a stop string.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], prompt_token_ids: Sequence[int], held_back: int
    ) -> None:
        self._decode = decode
        self._window = list(prompt_token_ids[-_WINDOW:])
        self._held_back = held_back
        self._decoded = 0
        self._released = 0
        self._started = False

    @property
    def started(self) -> bool:
        """True once a token was out."""
        return self._started

    def ends(self, token_ids: Sequence[int], text: str) -> list[int]:
        """For each token, the length of the text released once that token was out.

        Args:
            token_ids: the tokens of the next delta.
            text: the text that the delta released.
        """
        before, self._released = self._released, self._released + len(text)
        if not token_ids:
            return []
        self._started = True
        if len(token_ids) == 1 and not self._held_back:
            self._window = [*self._window, *token_ids][-_WINDOW:]
            return [self._released]
        if not self._held_back:
            # Nothing is withheld at a delta's end, so what was decoded is what was released.
            self._decoded = before
        ends = []
        for token_id in token_ids:
            self._decoded += self._gain(token_id)
            ends.append(min(max(self._decoded - self._held_back, before), self._released))
        ends[-1] = self._released
        return ends

    def _gain(self, token_id: int) -> int:
        """Characters that a token completes; a character may be spread over several tokens."""
        longer = [*self._window, token_id]
        gain = len(self._complete(longer)) - len(self._complete(self._window))
        self._window = longer[-_WINDOW:]
        return gain

    def _complete(self, token_ids: Sequence[int]) -> str:
        return self._decode(token_ids).rstrip(_INCOMPLETE)
