"""The sim engine: `chiron.engine` stepped by a clock, with tokens and text in place of counts."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Hashable, Sequence

from chiron.engine import (
    ContextExceededError,
    EngineModel,
    EngineStateError,
    KvCapacityExceededError,
    StepOutcome,
)
from chiron.engine import EngineRequest as ModelRequest
from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import (
    ChoiceDelta,
    Engine,
    EngineBusyError,
    EngineConfig,
    EngineDeadError,
    EngineInfo,
    EngineLoadError,
    EngineOutput,
    EngineRequest,
    EngineStats,
    InvalidRequestError,
    OnGone,
)
from services.worker.engines.calls import Calls
from services.worker.engines.sim import chat, language, tools, vocabulary
from services.worker.engines.sim.cache import CacheWatch
from services.worker.engines.sim.choice import Choice
from services.worker.engines.sim.clock import Clock, MonotonicClock
from services.worker.engines.sim.settings import SimSettings, parse_settings
from services.worker.engines.sim.spans import RequestSpan
from services.worker.engines.sim.stream import Stream
from services.worker.engines.sim.tokenizer import check_ids, encode

MOST_LAG_S = 0.1
"""A schedule further behind the clock than this starts anew, so that an overloaded host shows."""

_log = logging.getLogger(__name__)


class SimEngine(Engine):
    """One task takes the model's steps and sleeps until each one's end; idle, it sets no timer."""

    def __init__(self, config: EngineConfig, settings: SimSettings, clock: Clock) -> None:
        """Makes an engine that `start` loads. Raises EngineLoadError for a bad setting."""
        profile = settings.timing()
        budget = config.step_token_budget or profile.default_step_token_budget
        ceiling = max(settings.max_step_token_budget, profile.default_step_token_budget)
        if budget > ceiling:
            raise EngineLoadError(
                f"initial_step_token_budget: {budget} is above max_step_token_budget ({ceiling})"
            )
        self._profile = profile
        self._clock = clock
        self._time_scale = settings.time_scale
        self._adapters = frozenset(config.adapters)
        self._tool_parser = config.tool_parser
        self._salt = language.mix(settings.seed)
        self._model = EngineModel(profile, batch_size=config.batch_size, step_token_budget=budget)
        self._info = EngineInfo(
            # A request must fit into the KV cache alone, drafts of its last step included.
            max_context_tokens=min(
                profile.max_context_tokens, self._model.kv_total_tokens - settings.draft_tokens
            ),
            kv_capacity_tokens=self._model.kv_total_tokens,
            max_batch_size=config.max_batch_size,
            max_step_token_budget=ceiling,
            vocabulary_size=vocabulary.SIZE,
            kv_block_size=profile.block_size,
        )
        self._handles = itertools.count()
        self._streams: dict[str, Stream] = {}
        self._by_handle: dict[int, Stream] = {}
        self._output_tokens = self._prompt_tokens = self._cached_tokens = 0
        self._cache = CacheWatch(self._model.pool)
        self._work = asyncio.Event()
        self._death: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._driver: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, config: EngineConfig, clock: Clock | None = None) -> SimEngine:
        """Waits for the profile's load time. Raises EngineLoadError, also when `fail_load` says so."""
        for name in ("chat_template", "reasoning_parser"):
            if getattr(config, name):
                raise EngineLoadError(f"{name}: the sim engine has a fixed chat template and does not reason")
        tools.check_parser(config.tool_parser)
        settings = parse_settings(config.engine_args)
        clock = clock or MonotonicClock()
        engine = cls(config, settings, clock)
        await clock.sleep_until(engine._model.load(clock.now()))
        if settings.fail_load:
            raise EngineLoadError(settings.fail_load)
        engine._driver = asyncio.create_task(engine._drive(), name=f"sim-engine-{config.instance_id}")
        return engine

    @property
    def info(self) -> EngineInfo:
        """What is fixed since the start."""
        return self._info

    def tokenize(self, request: pb.GenerateRequest) -> Sequence[int]:
        """Token ids of the prompt or the rendered chat. Raises InvalidRequestError."""
        kind = request.WhichOneof("input")
        if kind == "chat":
            return chat.render(request.chat)
        if kind == "prompt_token_ids":
            ids = list(request.prompt_token_ids.ids)
            bad = check_ids(ids, vocabulary.SIZE)
            if bad is not None:
                raise InvalidRequestError(
                    "prompt_token_ids", f"{bad} is not below the vocabulary's {vocabulary.SIZE}"
                )
        else:
            ids = encode(request.prompt)
        if not ids:
            raise InvalidRequestError(kind or "prompt", "must not be empty")
        return ids

    async def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        """Streams the output. Raises InvalidRequestError, EngineBusyError (asleep) and EngineDeadError."""
        stream = self._submit(request)
        span = RequestSpan(request, stream)
        try:
            while not (stream.finished and stream.drained):
                output = await stream.take()
                span.note(output)
                yield output
        finally:
            span.end()
            self._forget(stream)

    def calls(self, request: pb.GenerateRequest) -> Calls:
        """See `Engine.calls` and `tools`."""
        return tools.calls(request) if self._tool_parser else super().calls(request)

    def delivered(self, request: EngineRequest) -> ChoiceDelta:
        """See `Engine.delivered`."""
        (choice,) = self._choices(request).values()
        return choice.delivered(request.delivered_token_ids, request.delivered_text_length)

    def follow_cache(self, on_gone: OnGone) -> int:
        """See `Engine.follow_cache`."""
        self._cache.follow(on_gone)
        return self._profile.block_size

    def prompt_blocks(self, request: EngineRequest) -> Sequence[Hashable]:
        """See `Engine.prompt_blocks`."""
        stream = self._streams.get(request.request_id)
        return stream.blocks if stream is not None else ()

    def resume_obstacle(self, sampling: pb.SamplingParams) -> str:
        """Only several choices: all else is a function of the tokens so far, whoever wrote them."""
        return "it has several choices" if sampling.n > 1 else ""

    async def abort(self, request_id: str) -> None:
        """Ends a request with FINISH_REASON_ABORT; an unknown id does nothing."""
        stream = self._streams.get(request_id)
        if stream is None:
            return
        for handle, choice in stream.choices.items():
            if not choice.finished:
                stream.put(choice.cut(), self._clock.now())
                self._release(handle)

    async def set_limits(self, *, batch_size: int = 0, step_token_budget: int = 0) -> None:
        """Sets what is not 0, from the next step on. Raises ValueError out of range."""
        limits = (
            ("batch_size", batch_size, self._info.max_batch_size),
            ("step_token_budget", step_token_budget, self._info.max_step_token_budget),
        )
        for name, value, most in limits:
            if value and not 1 <= value <= most:
                raise ValueError(f"{name}: must be 1 to {most}, not {value}")
        if batch_size:
            self._model.set_batch_size(batch_size)
        if step_token_budget:
            self._model.set_step_token_budget(step_token_budget)

    async def preempt(self, request_ids: Sequence[str]) -> Sequence[str]:
        """Puts running requests back into the queue; returns those that were running."""
        preempted = []
        for request_id in request_ids:
            stream = self._streams.get(request_id)
            if stream is None:
                continue
            ran = [self._model.preempt(handle) for handle in stream.choices if handle in self._model]
            if any(ran):
                stream.preemptions += 1
                preempted.append(request_id)
        return preempted

    async def sleep(self, level: int) -> None:
        """Sleeps at level 1 or 2 (else ValueError). Raises EngineBusyError while requests run or wait.

        At level 1 the weights take as long to host memory as back.
        """
        if self._streams:
            raise EngineBusyError(f"cannot sleep: {len(self._streams)} requests run or wait")
        now = self._clock.now()
        try:
            self._model.sleep(now, level)
            self._cache.tell()
        except EngineStateError as error:
            raise EngineBusyError(str(error)) from error
        if level == 1:
            await self._clock.sleep_until(now + self._profile.wake_s[0])

    async def wake(self) -> None:
        """Waits for the profile's wake time. Raises EngineBusyError unless asleep."""
        try:
            ready = self._model.wake(self._clock.now())
        except EngineStateError as error:
            raise EngineBusyError(str(error)) from error
        await self._clock.sleep_until(ready)

    def stats(self) -> EngineStats:
        """Figures of this instant; a request whose last tokens are being computed still runs."""
        totals, model = self._model.totals, self._model
        return EngineStats(
            running=len(self._by_handle) - model.waiting,
            waiting=model.waiting,
            kv_usage=model.kv_used_tokens / model.kv_total_tokens,
            batch_size=model.batch_size,
            step_token_budget=model.step_token_budget,
            steps=totals.steps,
            output_tokens=self._output_tokens,
            prompt_tokens=self._prompt_tokens,
            cached_prompt_tokens=self._cached_tokens,
            preemptions=totals.preemptions,
            draft_tokens=totals.draft_tokens,
            accepted_tokens=totals.accepted_tokens,
        )

    async def wait_dead(self) -> str:
        """Returns the reason when the stepping task has failed."""
        return await asyncio.shield(self._death)

    async def close(self) -> None:
        """Stops stepping; streams that are left raise EngineDeadError."""
        if self._driver is not None and not self._driver.done():
            self._driver.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._driver
        for stream in self._streams.values():
            stream.kill("the engine was closed")

    def _submit(self, request: EngineRequest) -> Stream:
        if self._death.done():
            raise EngineDeadError(self._death.result())
        choices = self._choices(request)
        prompt, delivered = request.prompt_token_ids, request.delivered_token_ids
        tokens = [*prompt, *delivered]
        # The salt changes what blocks are called, and nothing of what the model says.
        state = language.absorb_all(self._start_state(request.adapter), request.cache_salt.encode())
        hashes = language.block_hashes(state, tokens, self._profile.block_size)
        stream = Stream(request.request_id, choices, len(tokens), self._clock.now(), hashes)
        if delivered:
            for choice in choices.values():
                end = choice.resume(delivered, request.delivered_text_length)
                if end is not None:
                    stream.put(end, self._clock.now())
        try:
            for handle, choice in choices.items():
                if not choice.finished:
                    self._model.submit(
                        ModelRequest(
                            handle,
                            len(prompt),
                            request.sampling.max_tokens,
                            request.priority,
                            hashes,
                            resumed_tokens=len(delivered),
                        )
                    )
        except (ContextExceededError, KvCapacityExceededError) as error:
            raise InvalidRequestError("sampling.max_tokens", str(error)) from error
        except EngineStateError as error:
            raise EngineBusyError(str(error)) from error
        self._streams[request.request_id] = stream
        self._by_handle.update({key: stream for key, choice in choices.items() if not choice.finished})
        self._work.set()
        return stream

    def _choices(self, request: EngineRequest) -> dict[int, Choice]:
        params = request.sampling
        if request.request_id in self._streams:
            raise InvalidRequestError("request_id", f"{request.request_id} is live already")
        if request.adapter and request.adapter not in self._adapters:
            raise InvalidRequestError("adapter", f"unknown adapter {request.adapter!r}")
        if not request.prompt_token_ids:
            raise InvalidRequestError("prompt", "must not be empty")
        if params.max_tokens < 1:
            raise InvalidRequestError("sampling.max_tokens", "must be at least 1")
        for name, ids in (
            ("stop_token_ids", params.stop_token_ids),
            ("logit_bias", tuple(params.logit_bias)),
        ):
            bad = check_ids(ids, vocabulary.SIZE)
            if bad is not None:
                raise InvalidRequestError(
                    f"sampling.{name}", f"{bad} is not below the vocabulary's {vocabulary.SIZE}"
                )
        state = language.absorb_all(self._start_state(request.adapter), request.prompt_token_ids)
        # An unset seed is 0, so that any replica continues a stream that another one began.
        return {
            next(self._handles): Choice(index, params, request.prompt_token_ids, state, params.seed + index)
            for index in range(params.n or 1)
        }

    def _start_state(self, adapter: str) -> int:
        """The language model's state before the prompt: other weights, other states."""
        return language.absorb_all(self._salt, adapter.encode())

    async def _drive(self) -> None:
        """Takes steps back to back on an absolute schedule, so that a late timer delays one step alone."""
        try:
            end = self._clock.now()
            while True:
                now = self._clock.now()
                begin = end if now - end < MOST_LAG_S else now
                outcome = self._model.step(begin, self._time_scale) if self._by_handle else None
                if outcome is None:
                    self._work.clear()
                    await self._work.wait()
                    end = self._clock.now()
                    continue
                self._cache.tell()
                self._note_admissions(outcome, begin)
                end = begin + outcome.duration_s
                await self._clock.sleep_until(end)
                self._deliver(outcome, end)
        except Exception as error:
            _log.exception("the sim engine died")
            self._die(f"{type(error).__name__}: {error}")

    def _note_admissions(self, outcome: StepOutcome, begin: float) -> None:
        for handle, cached in outcome.admitted:
            stream = self._by_handle[handle]
            if stream.queue_s is None:
                stream.queue_s = max(0.0, begin - stream.arrival)
                stream.cached_prompt_tokens = cached
        for handle in outcome.preempted:
            self._by_handle[handle].preemptions += 1

    def _deliver(self, outcome: StepOutcome, end: float) -> None:
        for handle in outcome.first_tokens:
            if (stream := self._by_handle.get(handle)) is not None:
                self._prompt_tokens += stream.prompt_tokens
                self._cached_tokens += stream.cached_prompt_tokens
        for handle, count in outcome.emissions:
            stream = self._by_handle.get(handle)
            if stream is None:
                continue  # aborted while the step ran
            choice = stream.choices[handle]
            delta = choice.emit(count)
            self._output_tokens += len(delta.token_ids)
            stream.put(delta, end)
            if choice.finished:
                self._release(handle)

    def _release(self, handle: int) -> None:
        """Takes a choice's slot away, if the model has not done so itself."""
        self._by_handle.pop(handle, None)
        if handle in self._model:
            self._model.abort(handle)

    def _forget(self, stream: Stream) -> None:
        for handle in stream.choices:
            self._release(handle)
        if self._streams.get(stream.request_id) is stream:
            del self._streams[stream.request_id]

    def _die(self, reason: str) -> None:
        if not self._death.done():
            self._death.set_result(reason)
        for stream in self._streams.values():
            stream.kill(reason)
