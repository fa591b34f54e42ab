"""Chooses the next token as SamplingParams ask, from the language model's probabilities by rank."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from chiron.v1 import inference_pb2 as pb
from services.worker.engines.sim import language
from services.worker.engines.sim.tokenizer import decode
from services.worker.engines.sim.vocabulary import EOS

_FORBIDDEN = -1e9
_U64 = 1 << 64


class Pick(NamedTuple):
    """A sampled token and its place in the model's own distribution, before any parameter changed it."""

    token: int
    rank: int
    """From 1."""
    logprob: float


class Sampler:
    """The sampling rules of one choice.

    Without biases and penalties the probabilities by rank are the same at every position, so what
    temperature, top_k, top_p and min_p leave of them is computed once and a token costs one look-up.
    """

    def __init__(self, params: pb.SamplingParams, seed: int, prompt: Sequence[int]) -> None:
        self._temperature = params.temperature if params.HasField("temperature") else 1.0
        self._top_k = params.top_k
        self._top_p = params.top_p if params.HasField("top_p") else 1.0
        self._min_p = params.min_p
        self._bias = dict(params.logit_bias)
        self._presence, self._frequency = params.presence_penalty, params.frequency_penalty
        self._repetition = params.repetition_penalty if params.HasField("repetition_penalty") else 1.0
        self._seed_key = language.mix((seed + 0x632BE59BD9B4E019) % _U64)
        self._eos = not params.ignore_eos
        self._min_tokens = params.min_tokens
        self._stops = frozenset(params.stop_token_ids)
        self._counts: Counter[int] | None = None
        penalised = self._presence or self._frequency or self._repetition != 1.0
        if penalised:
            self._counts = Counter()
        self._seen = set(prompt) if self._repetition != 1.0 else set()
        self._plain = not (self._bias or penalised)
        self._cumulative = self._cumulate(language.LOGITS) if self._temperature else []

    def pick(self, state: int, last_token: int, produced: int) -> Pick:
        """The next token after `produced` output tokens, all of which `note` has been told."""
        early = produced < self._min_tokens
        ends = language.ends_here(state) and self._eos and not early
        if not self._plain or (early and self._stops):
            pick = self._pick_slowly(state, last_token, ends=ends, early=early)
        elif ends:
            pick = Pick(EOS, 1, math.log1p(-language.ENDING))
        else:
            rank = bisect_right(self._cumulative, self._uniform(state)) if self._cumulative else 0
            pick = Pick(language.candidate(state, last_token, rank), rank + 1, language.LOGITS[rank])
        return pick

    def note(self, token: int) -> None:
        """A token is part of the output."""
        if self._counts is not None:
            self._counts[token] += 1

    def alternatives(
        self, state: int, last_token: int, produced: int, count: int
    ) -> list[pb.TokenAlternative]:
        """The `count` likeliest tokens of the model's own distribution."""
        ends = language.ends_here(state) and self._eos and produced >= self._min_tokens
        ranked = list(_distribution(state, last_token, ends).items())[:count]
        return [
            pb.TokenAlternative(token_id=token, logprob=logit, text=decode([token]))
            for token, logit in ranked
        ]

    def _uniform(self, state: int) -> float:
        return language.mix(state ^ self._seed_key) / _U64

    def _cumulate(self, logits: Sequence[float]) -> list[float]:
        """Cumulative probabilities of what the parameters leave of descending logits; the last one is 1."""
        weights = [math.exp((logit - logits[0]) / self._temperature) for logit in logits]
        kept = [weight for weight in weights if weight >= self._min_p]
        kept = kept[: self._top_k or None]
        cumulative = list(itertools.accumulate(kept))
        total = cumulative[-1]
        cumulative = [value / total for value in cumulative]
        enough = next(i for i, value in enumerate(cumulative) if value >= self._top_p - 1e-9)
        cumulative = [value / cumulative[enough] for value in cumulative[: enough + 1]]
        cumulative[-1] = 1.0
        return cumulative

    def _pick_slowly(self, state: int, last_token: int, *, ends: bool, early: bool) -> Pick:
        raw = _distribution(state, last_token, ends)
        scores = dict(raw)
        for token in self._bias:
            scores.setdefault(token, language.FLOOR)
        for token in scores:
            scores[token] = self._adjusted(token, scores[token])
            if early and (token in self._stops or (token == EOS and self._eos)):
                scores[token] = _FORBIDDEN
        ranked = sorted(scores.items(), key=lambda item: -item[1])
        index = 0
        if self._temperature:
            index = bisect_right(self._cumulate([score for _, score in ranked]), self._uniform(state))
        token = ranked[index][0]
        position = list(raw).index(token) if token in raw else len(raw)
        return Pick(token, position + 1, raw.get(token, language.FLOOR))

    def _adjusted(self, token: int, logit: float) -> float:
        count = self._counts[token] if self._counts is not None else 0
        if count or token in self._seen:
            logit = logit / self._repetition if logit > 0 else logit * self._repetition
        if count:
            logit -= self._frequency * count + self._presence
        return logit + self._bias.get(token, 0.0)


def _distribution(state: int, last_token: int, ends: bool) -> dict[int, float]:
    """Token → log probability, likeliest first; tokens that are not in it have language.FLOOR."""
    tokens = language.candidates(state, last_token)
    if not ends:
        return dict(zip(tokens, language.LOGITS, strict=True))
    rest = math.log(language.ENDING)
    likeliest = {EOS: math.log1p(-language.ENDING)}
    return likeliest | {token: logit + rest for token, logit in zip(tokens, language.LOGITS, strict=True)}
