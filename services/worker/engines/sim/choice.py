"""One choice of one request: from the count of tokens that the engine model emitted to tokens and text."""

from __future__ import annotations

from collections.abc import Sequence

from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import ChoiceDelta, InvalidRequestError
from services.worker.engines.sim import constraint, language
from services.worker.engines.sim.sampling import Pick, Sampler
from services.worker.engines.sim.stops import StopStrings
from services.worker.engines.sim.tokenizer import Detokenizer, decode
from services.worker.engines.sim.vocabulary import EOS, special_text


class Choice:
    """Writes one choice and knows when it ends."""

    def __init__(
        self, index: int, params: pb.SamplingParams, prompt: Sequence[int], state: int, seed: int
    ) -> None:
        """`state` is the language model's after the prompt. Raises InvalidRequestError for a constraint."""
        self.index = index
        self.produced = 0
        self.finished = False
        self._params = params
        self._state = state
        self._last = prompt[-1]
        self._script = constraint.script(params, state, seed)
        self._sampler = Sampler(params, seed, prompt)
        self._detokenizer = Detokenizer(keep_special=params.keep_special_tokens)
        self._stops = StopStrings(params.stop, include=params.include_stop)
        self._stop_ids = frozenset(params.stop_token_ids)
        self._logprobs = params.logprobs if params.HasField("logprobs") else None
        self._length = 0
        self._unsent = ""

    def resume(self, delivered: Sequence[int], text_length: int) -> ChoiceDelta | None:
        """Goes through the tokens that another engine delivered; the last delta if they end the choice.

        Raises InvalidRequestError when no undisturbed choice delivers these tokens and this much text.
        """
        delta = self._retrace(delivered, text_length)
        self._length, self._unsent = text_length, delta.text[text_length:]
        if not self.finished:
            return None
        delta.token_ids, delta.text_ends, delta.text = [], [], self._unsent
        return delta

    def delivered(self, delivered: Sequence[int], text_length: int) -> ChoiceDelta:
        """What these tokens have brought; the choice is used up. Raises as `resume`."""
        delta = self._retrace(delivered, text_length)
        delta.text = delta.text[:text_length]
        delta.text_ends = [min(end, text_length) for end in delta.text_ends]
        return delta

    def _retrace(self, delivered: Sequence[int], text_length: int) -> ChoiceDelta:
        delta = ChoiceDelta(self.index, delivered, "", [])
        ends: list[int] = []
        for token in delivered:
            if self.finished:
                raise InvalidRequestError(
                    "resume.delivered_token_ids", f"the output ends after {self.produced} of them"
                )
            self._sampler.note(token)
            delta.text += self._take(token, delta)
            ends.append(len(delta.text))
        if text_length > len(delta.text):
            text = f"is {text_length}, the tokens have released {len(delta.text)}"
            raise InvalidRequestError("resume.delivered_text_length", text)
        delta.text_ends = ends
        return delta

    def emit(self, count: int) -> ChoiceDelta:
        """The next `count` tokens, fewer when the choice ends among them."""
        delta = ChoiceDelta(self.index, [], "", [])
        tokens: list[int] = []
        ends: list[int] = []
        logprobs: list[pb.TokenLogprobs] = []
        texts: list[str] = []
        for _ in range(count):
            pick = self._pick()
            self._sampler.note(pick.token)
            if self._logprobs is not None:
                logprobs.append(self._describe(pick, self._logprobs))
            tokens.append(pick.token)
            text = self._unsent + self._take(pick.token, delta)
            self._unsent = ""
            texts.append(text)
            self._length += len(text)
            ends.append(self._length)
            if self.finished:
                break
        delta.token_ids, delta.text_ends, delta.logprobs = tokens, ends, logprobs
        delta.text = "".join(texts)
        return delta

    def cut(self) -> ChoiceDelta:
        """The last delta of a choice that is aborted: the text still held, and no token."""
        self.finished = True
        text = self._unsent + self._rest()
        return ChoiceDelta(self.index, [], text, [], finish_reason=pb.FINISH_REASON_ABORT)

    def _pick(self) -> Pick:
        if self._script is None:
            return self._sampler.pick(self._state, self._last, self.produced)
        token = self._script[self.produced] if self.produced < len(self._script) else EOS
        return Pick(token, 1, 0.0)

    def _describe(self, pick: Pick, count: int) -> pb.TokenLogprobs:
        if self._script is not None:
            only = pb.TokenAlternative(token_id=pick.token, logprob=pick.logprob, text=decode([pick.token]))
            alternatives = [only][:count]
        else:
            alternatives = self._sampler.alternatives(self._state, self._last, self.produced, count)
        return pb.TokenLogprobs(logprob=pick.logprob, rank=pick.rank, alternatives=alternatives)

    def _take(self, token: int, delta: ChoiceDelta) -> str:
        """Moves on by one token; returns the text it releases and marks the delta if the choice ends."""
        params = self._params
        self._state = language.absorb(self._state, token)
        self._last = token
        self.produced += 1
        may_stop = self.produced >= params.min_tokens
        at_end = token == EOS and (self._script is not None or (not params.ignore_eos and may_stop))
        if at_end or (may_stop and token in self._stop_ids):
            self._end(delta, pb.FINISH_REASON_STOP)
            delta.stop_match = "" if at_end else special_text(token) or decode([token])
            text = self._detokenizer.add(token) if params.include_stop else ""
            return self._stops.flush() + text + self._detokenizer.flush()
        text = self._detokenizer.add(token)
        if may_stop:
            text = self._stops.add(text)
            if self._stops.match:
                self._end(delta, pb.FINISH_REASON_STOP)
                delta.stop_match = self._stops.match
                return text
        if self.produced == params.max_tokens:
            self._end(delta, pb.FINISH_REASON_LENGTH)
            text += self._rest()
        return text

    def _rest(self) -> str:
        return self._stops.flush() + self._detokenizer.flush()

    def _end(self, delta: ChoiceDelta, reason: pb.FinishReason.ValueType) -> None:
        self.finished = True
        delta.finish_reason = reason
