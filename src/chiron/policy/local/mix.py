"""The mix of work: what a request computes in a step, and the KV tokens that it holds on average."""

from __future__ import annotations

from chiron.policy.snapshots import decodes

MEMORY = 0.98
"""Discount per interval of what both long-run estimates rest on."""
NOW_MEMORY = 0.8
"""The same for what requests hold at present: the batch has a few less between an end and an admission."""
MOST_AGEING = 3.0
"""A young batch may be expected to come to hold at most so many times its present KV tokens."""

LITTLE_GROWTH = 0.05
"""Growth of the batch, as a share of it, that is no more than its fluctuation."""
LATE_RELEASE = 1.1
MOST_LATE_RELEASE = 0.17
"""Lengths have long tails, and the longest requests of a young batch have not begun to end: for each part of
what is written that is not released yet, settled KV is this much more than the release so far implies."""
EARLY_TURNOVER = 0.4
"""Short requests end first, so a young batch admits more prompt per output token than it will: by so much
for each part of what is written that is not released yet."""
PRESENT_WEIGHT = 0.5
"""Weight of the KV held at present once the batch is settled: it is what is read now, and swings slowly."""
SETTLED_FROM = 0.8
"""Share of the KV written that is released again, from which on the present counts."""


class WorkMix:
    """Both as they will be once the batch is settled, although it is young or still growing (reconstructed).

    A request that decodes takes part in each step: with one token, and with those that are drafted for it.
    Counted per such decode are the tokens computed and the output tokens that come of it, each 1 without
    speculative decoding, and the prompt tokens owed for it.

    Prompt tokens computed in an interval replace requests that ended and fill new slots: they are regressed
    on decodes and on the growth of the batch, and the first coefficient is the lasting one.

    A request's KV grows until it ends, so a young batch holds less than it will. KV tokens released per KV
    token held and step, h, settle sooner than KV itself, and once as much is released as written,
    KV = (tokens written per step) / h; per request that is (output tokens + prompt tokens per decode) / h.
    How much of what is written is released again tells how settled the batch is, and corrects both (the
    factors are measured on lognormal lengths; they fade as the batch settles).
    """

    def __init__(self) -> None:
        self.prompt_share = 0.0
        """Prompt tokens computed per decode, over the long run."""
        self.width = 1.0
        """Tokens that a decode computes: one, and its drafts."""
        self.gain = 1.0
        """Output tokens per decode: one, and the drafts accepted."""
        self.kv_per_request = 0.0
        """KV tokens per running request, once settled."""
        self._decodes = self._drafted = self._output = 0.0
        self._out_out = self._out_grown = self._grown_grown = 0.0
        self._out_prompt = self._grown_prompt = 0.0
        self._released = 0.0
        self._written = 0.0
        self._held_steps = 0.0
        self._kv_now = 0.0
        self._running_now = 0.0

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
        drafted: int = 0,
        accepted: int = 0,
    ) -> None:
        """Learn from one saturated interval: tokens, steps, requests and KV at its end and their growth."""
        decoded = decodes(output, accepted)
        self._decodes = MEMORY * self._decodes + decoded
        self._drafted = MEMORY * self._drafted + drafted
        self._output = MEMORY * self._output + output
        self.width = 1 + self._drafted / self._decodes
        self.gain = self._output / self._decodes
        self._out_out = MEMORY * self._out_out + decoded * decoded
        self._out_grown = MEMORY * self._out_grown + decoded * grown
        self._grown_grown = MEMORY * self._grown_grown + grown * grown
        self._out_prompt = MEMORY * self._out_prompt + decoded * prompt
        self._grown_prompt = MEMORY * self._grown_prompt + grown * prompt
        self._released = MEMORY * self._released + max(0.0, output + prompt - kv_grown)
        self._written = MEMORY * self._written + output + prompt
        self._held_steps = MEMORY * self._held_steps + (kv_tokens - kv_grown / 2) * steps
        self._kv_now = NOW_MEMORY * self._kv_now + kv_tokens
        self._running_now = NOW_MEMORY * self._running_now + running
        turnover = min(1.0, self._released / self._written) if self._written else 0.0
        share = self._lasting_share(LITTLE_GROWTH * running)
        self.prompt_share = share / (1 + EARLY_TURNOVER * (1 - turnover))
        self.kv_per_request = self._settled_kv(turnover)

    def _settled_kv(self, turnover: float) -> float:
        """KV tokens per request once settled, given the share of what is written that is released again."""
        now = self._kv_now / self._running_now if self._running_now else 0.0
        if self._released <= 0:
            return MOST_AGEING * now
        late = min(MOST_LATE_RELEASE, LATE_RELEASE * (1 - turnover))
        settled = (self.gain + self.prompt_share) * self._held_steps / self._released * (1 + late)
        present = PRESENT_WEIGHT * max(0.0, turnover - SETTLED_FROM) / (1 - SETTLED_FROM)
        return min(MOST_AGEING * now, settled + present * (now - settled))

    def _lasting_share(self, little: float) -> float:
        """The coefficient of output in prompt ~ output + growth; growth below `little` requests is noise."""
        alone = self._out_prompt / self._out_out
        common = self._out_out * (self._grown_grown + little * little) - self._out_grown**2
        if common <= 0:
            return alone
        per_slot = (self._out_out * self._grown_prompt - self._out_grown * self._out_prompt) / common
        # A slot that is new costs prompt, never yields it.
        if per_slot <= 0:
            return alone
        return max(0.0, (self._out_prompt - per_slot * self._out_grown) / self._out_out)
