"""The mix of work: prompt tokens per output token, and the KV tokens that a request holds on average."""

from __future__ import annotations

MEMORY = 0.98
"""Discount per interval of what both estimates rest on."""
MOST_AGEING = 3.0
"""A young batch may be expected to come to hold at most so many times its present KV tokens."""

TAIL = 0.5
"""Lengths have long tails, and the longest requests of a young batch have not begun to end: what is missing
to the settled KV is taken to be so much more."""


class WorkMix:
    """Both as they will be once the batch is settled, although it is young or still growing (reconstructed).

    Prompt tokens computed in an interval replace requests that ended and fill new slots: they are regressed
    on output tokens and on the growth of the batch, and the first coefficient is the lasting one.

    A request's KV grows until it ends, so a young batch holds less than it will. KV tokens released per KV
    token held and step, h, settle sooner than KV itself, and once as much is released as written,
    KV = (tokens written per step) / h; per request that is (1 + prompt share) / h.
    """

    def __init__(self) -> None:
        self.prompt_share = 0.0
        """Prompt tokens computed per output token, over the long run."""
        self.kv_per_request = 0.0
        """KV tokens per running request, once settled."""
        self._out_out = self._out_grown = self._grown_grown = 0.0
        self._out_prompt = self._grown_prompt = 0.0
        self._released = 0.0
        self._held_steps = 0.0

    @property
    def known(self) -> bool:
        """Tell whether anything has been observed."""
        return self._out_out > 0

    def observe(
        self,
        *,
        output: int,
        prompt: int,
        steps: int,
        running: int,
        grown: int,
        kv_tokens: float,
        kv_grown: float,
    ) -> None:
        """Learn from one saturated interval: tokens, steps, requests and KV at its end and their growth."""
        self._out_out = MEMORY * self._out_out + output * output
        self._out_grown = MEMORY * self._out_grown + output * grown
        self._grown_grown = MEMORY * self._grown_grown + grown * grown
        self._out_prompt = MEMORY * self._out_prompt + output * prompt
        self._grown_prompt = MEMORY * self._grown_prompt + grown * prompt
        self.prompt_share = self._lasting_share()
        self._released = MEMORY * self._released + max(0.0, output + prompt - kv_grown)
        self._held_steps = MEMORY * self._held_steps + (kv_tokens - kv_grown / 2) * steps
        if running:
            now = kv_tokens / running
            settled = (
                (1 + self.prompt_share) * self._held_steps / self._released
                if self._released
                else MOST_AGEING * now
            )
            settled = max(now, settled)
            self.kv_per_request = min(MOST_AGEING * now, settled * (1 + TAIL * (1 - now / settled)))

    def _lasting_share(self) -> float:
        alone = self._out_prompt / self._out_out
        # A slot that is new costs prompt, never yields it: without growth the plain ratio holds.
        common = self._out_out * self._grown_grown - self._out_grown**2
        if common <= 1e-6 * self._out_out * self._grown_grown:
            return alone
        per_slot = (self._out_out * self._grown_prompt - self._out_grown * self._out_prompt) / common
        if per_slot <= 0:
            return alone
        return max(0.0, (self._out_prompt - per_slot * self._out_grown) / self._out_out)
