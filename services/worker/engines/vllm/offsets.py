"""Where each token ends in the text of a choice.

vLLM releases text per delta, and a delta may hold several tokens (speculative decoding, or a consumer that
lagged). The offsets within such a delta are recovered by decoding its tokens again, as vLLM does: text
appears once what is decoded ends with a whole character.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_WINDOW = 8
"""Tokens of context before the ones that are decoded: a decoder treats the first word specially."""

INCOMPLETE = "\ufffd"
"""What part of a character decodes to."""


class TextOffsets:
    """Follows one choice; lengths are in Unicode code points.

    Args:
        decode: text of a sequence of token ids.
        prompt_token_ids: the prompt; its tail is the first context.
        held_back: characters that vLLM withholds because they might begin a stop string.
        decoded: length of the text that earlier output tokens, then part of the prompt, decode to.
        released: length of it that is out.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        prompt_token_ids: Sequence[int],
        held_back: int,
        decoded: int = 0,
        released: int = 0,
    ) -> None:
        self._decode = decode
        self._held_back = held_back
        # Tokens whose text is out, and those after them whose text is not.
        self._context = list(prompt_token_ids[-_WINDOW:])
        self._pending: list[int] = []
        while self._context and decode(self._context).endswith(INCOMPLETE):
            self._pending.insert(0, self._context.pop())
        self._decoded = decoded
        self._released = released
        self._started = False

    @property
    def started(self) -> bool:
        """True once a token was out."""
        return self._started

    def ends(self, token_ids: Sequence[int], text: str) -> list[int]:
        """For each token, the length of the text released once that token was out.

        The last is exact, and so are the others of a delta of valid text. Where a delta of several tokens
        holds bytes that are no text, after which of them each replacement character came out is presumed.

        Args:
            token_ids: the tokens of the next delta.
            text: the text that the delta released.
        """
        before, self._released = self._released, self._released + len(text)
        if not token_ids:
            return []
        self._started = True
        if len(token_ids) == 1 and not self._held_back:
            self._pending += token_ids
            if text:
                self._settle()
            return [self._released]
        if not self._held_back:
            # Nothing is withheld at a delta's end, so what was decoded is what was released, or more: text
            # that its tokens' first reader has lost comes with later ones.
            self._decoded = max(self._decoded, before)
        ends = []
        for token_id in token_ids:
            self._decoded += self._gain(token_id)
            ends.append(min(max(self._decoded - self._held_back, before), self._released))
        ends[-1] = self._released
        return ends

    def _gain(self, token_id: int) -> int:
        """Characters that a token makes appear, those of earlier tokens that waited for it included."""
        self._pending.append(token_id)
        text = self._decode([*self._context, *self._pending])
        gain = len(text) - len(self._decode(self._context))
        if gain <= 0 or text.endswith(INCOMPLETE):
            return 0
        self._settle()
        return gain

    def _settle(self) -> None:
        self._context = [*self._context, *self._pending][-_WINDOW:]
        self._pending.clear()
