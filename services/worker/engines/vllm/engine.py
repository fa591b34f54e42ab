"""The engine: requests in, outputs out, and the controls of a running AsyncLLM."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncGenerator, AsyncIterator, Hashable, Mapping, Sequence
from typing import Any, Self

from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import (
    ChoiceDelta,
    Engine,
    EngineBusyError,
    EngineConfig,
    EngineDeadError,
    EngineError,
    EngineInfo,
    EngineLoadError,
    EngineOutput,
    EngineRequest,
    EngineStats,
    InvalidRequestError,
    OnGone,
)
from services.worker.engines.calls import Calls
from services.worker.engines.vllm.cache import block_names
from services.worker.engines.vllm.liveness import ProcessWatch
from services.worker.engines.vllm.outputs import OutputReader
from services.worker.engines.vllm.prompts import PromptTokenizer, load_template
from services.worker.engines.vllm.sampling import client_error_type, invalid_request, sampling_params
from services.worker.engines.vllm.seam import Seam, Seams, remaining, resume_obstacle, with_delivered
from services.worker.engines.vllm.starting import StartedVllm, start_vllm
from services.worker.engines.vllm.tools import ToolSupport


class VllmEngine(Engine):
    """vLLM's AsyncLLM; its engine core is a process of its own."""

    def __init__(
        self,
        started: StartedVllm,
        limits: Sequence[int],
        prompts: PromptTokenizer,
        tools: ToolSupport | None,
    ) -> None:
        """Use `start`. `limits` are the scheduler's `chiron_limits`."""
        self._tools = tools
        self._started = started
        llm = self._llm
        self._prompts = prompts
        tokenizer = llm.get_tokenizer()
        # Decodes as vLLM's own detokeniser does; tokenizers that are not Hugging Face's fast ones lack it.
        self._decode = getattr(tokenizer, "_tokenizer", tokenizer).decode
        self._seams = Seams(llm.output_processor)
        self._live: dict[str, int] = {}
        self._asleep = 0
        self._closed = False
        self._adapters: dict[str, Any] = {}
        self._batch_size, max_batch_size, self._step_token_budget, max_budget = limits
        config = llm.vllm_config
        self._info = EngineInfo(
            max_context_tokens=config.model_config.max_model_len,
            kv_capacity_tokens=config.cache_config.num_gpu_blocks * config.cache_config.block_size,
            max_batch_size=max_batch_size,
            max_step_token_budget=max_budget,
            vocabulary_size=config.model_config.get_vocab_size(),
            kv_block_size=config.cache_config.block_size,
        )
        self._processes = ProcessWatch(
            [process.pid for process in llm.engine_core.resources.engine_manager.processes], self._on_death
        )
        self._block_tokens: int = config.cache_config.block_size
        if started.cache is not None:
            started.cache.start()
        # Ends when the engine core reports its own death, e.g. of one of its GPU processes.
        llm._run_output_handler()
        llm.output_handler.add_done_callback(self._output_handler_done)

    @classmethod
    async def start(cls, config: EngineConfig) -> Self:
        """Loads the model. Raises EngineLoadError."""
        load_template(config.chat_template)
        started = await asyncio.to_thread(start_vllm, config)
        engine = None
        try:
            limits = await started.llm.engine_core.call_utility_async("chiron_limits")
            prompts = PromptTokenizer(
                started.llm.get_tokenizer(),
                config.chat_template,
                started.llm.vllm_config.model_config.get_vocab_size(),
            )
            tools = await asyncio.to_thread(ToolSupport.load, config, started.llm, prompts)
            engine = cls(started, limits, prompts, tools)
            await engine._load_adapters(config.adapters)
            await engine.set_limits(batch_size=config.batch_size, step_token_budget=config.step_token_budget)
        except BaseException as error:
            if engine is not None:
                await engine.close()
            else:
                await _discard(started)
            if isinstance(error, ValueError):
                raise EngineLoadError(str(error)) from error
            raise
        return engine

    async def _load_adapters(self, adapters: Mapping[str, str]) -> None:
        from vllm.lora.request import LoRARequest

        for number, (name, path) in enumerate(sorted(adapters.items()), start=1):
            self._adapters[name] = LoRARequest(name, number, path)
            try:
                await self._llm.add_lora(self._adapters[name])
            except Exception as error:
                raise EngineLoadError(f"adapter {name!r}: {' '.join(str(error).split())}") from error

    @property
    def _llm(self) -> Any:
        return self._started.llm

    @property
    def info(self) -> EngineInfo:
        """Limits and sizes of the engine."""
        return self._info

    def tokenize(self, request: pb.GenerateRequest) -> Sequence[int]:
        """Token ids of the request's input. Raises InvalidRequestError."""
        return self._prompts.tokenize(request)

    async def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        """Streams the output; see `Engine.generate`."""
        self._check_serving()
        if request.request_id in self._live:
            raise InvalidRequestError("request_id", "a request with this id is running")
        reader = OutputReader(self._decode, request.prompt_token_ids, request.sampling)
        if request.delivered_token_ids:
            seam = self._seam(request, reader)
            if seam.finished:
                yield EngineOutput([seam.last_delta(self._decode)], time.monotonic())
                return
            self._seams.expect(request.request_id, seam)
        stream = self._submit(request)
        self._live[request.request_id] = request.sampling.n or 1
        try:
            async for output in stream:
                yield reader.convert(output)
        except EngineError:
            raise
        except client_error_type() as error:
            raise invalid_request(request.sampling, error) from error
        except Exception as error:
            raise self._failure(request.sampling, error) from error
        finally:
            await stream.aclose()
            self._seams.forget(request.request_id)
            del self._live[request.request_id]

    def _submit(self, request: EngineRequest) -> AsyncGenerator[Any, None]:
        adapter = self._adapters.get(request.adapter)
        if request.adapter and adapter is None:
            known = ", ".join(self._adapters) or "none"
            raise InvalidRequestError("adapter", f"unknown adapter {request.adapter!r}; there are: {known}")
        sampling = remaining(request.sampling, len(request.delivered_token_ids))
        prompt = {"type": "token", "prompt_token_ids": with_delivered(request)}
        if request.cache_salt:
            prompt["cache_salt"] = request.cache_salt
        stream: AsyncGenerator[Any, None] = self._llm.generate(
            prompt,
            sampling_params(sampling, self._info.vocabulary_size),
            request.request_id,
            lora_request=adapter,
            trace_headers=dict(request.trace_headers) or None,
            priority=request.priority,
        )
        return stream

    def calls(self, request: pb.GenerateRequest) -> Calls:
        """See `Engine.calls` and `ToolSupport`."""
        return super().calls(request) if self._tools is None else self._tools.calls(request)

    def delivered(self, request: EngineRequest) -> ChoiceDelta:
        """See `Engine.delivered`."""
        reader = OutputReader(self._decode, request.prompt_token_ids, request.sampling)
        params = sampling_params(request.sampling, self._info.vocabulary_size)
        seam = Seam(self._llm, request, params, reader.surplus)
        return reader.delivered(request.delivered_token_ids, seam.delivered_text)

    def _seam(self, request: EngineRequest, reader: OutputReader) -> Seam:
        params = sampling_params(request.sampling, self._info.vocabulary_size)
        seam = Seam(self._llm, request, params, reader.surplus)
        reader.resume(with_delivered(request), seam.decoded, seam.released)
        return seam

    def follow_cache(self, on_gone: OnGone) -> int:
        """See `Engine.follow_cache`."""
        if self._started.cache is None:
            return 0
        self._started.cache.follow(on_gone)
        return self._block_tokens

    def prompt_blocks(self, request: EngineRequest) -> Sequence[Hashable]:
        """See `Engine.prompt_blocks`."""
        tokens = with_delivered(request)
        return block_names(tokens, self._block_tokens, request.adapter, request.cache_salt)

    def resume_obstacle(self, sampling: pb.SamplingParams) -> str:
        """Several choices, and what of the past only the engine knew; see `seam`."""
        return resume_obstacle(sampling)

    def _check_serving(self) -> None:
        if self._closed:
            raise EngineDeadError("the engine is closed")
        if self._processes.reason or self._llm.errored:
            raise EngineDeadError(self._death())
        if self._asleep:
            raise EngineBusyError("the engine sleeps; wake it first")

    def _failure(self, sampling: pb.SamplingParams, error: Exception) -> EngineError:
        """What vLLM's other exceptions mean. It wraps what it did not expect, also of a bad request."""
        if self._processes.reason or self._llm.errored:
            return EngineDeadError(self._death())
        cause = error.__cause__ or error
        if isinstance(cause, ValueError | TypeError):
            return invalid_request(sampling, cause)
        return EngineError(f"{type(cause).__name__}: {cause}")

    async def abort(self, request_id: str) -> None:
        """Ends a request with FINISH_REASON_ABORT; an unknown id does nothing."""
        if not self._closed:
            await self._llm.abort(request_id)

    async def set_limits(self, *, batch_size: int = 0, step_token_budget: int = 0) -> None:
        """Sets what is not 0, from the next step on. Raises ValueError out of range."""
        for name, value, most in (
            ("batch_size", batch_size, self._info.max_batch_size),
            ("step_token_budget", step_token_budget, self._info.max_step_token_budget),
        ):
            if not 0 <= value <= most:
                raise ValueError(f"{name} must be 1 to {most}, not {value}")
        limits = await self._call("chiron_set_limits", batch_size, step_token_budget)
        self._batch_size, _, self._step_token_budget, _ = limits

    async def preempt(self, request_ids: Sequence[str]) -> Sequence[str]:
        """Puts running requests back into the queue; returns those of which a choice was running."""
        owners = {
            internal: request_id
            for request_id in request_ids
            for internal in self._llm.output_processor.external_req_ids.get(request_id, ())
        }
        preempted, running, waiting, kv_usage = await self._call("chiron_preempt", list(owners))
        # vLLM publishes figures with a step's outputs only, and the next decision is due before that.
        self._started.statistics.set_gauges(running, waiting, kv_usage)
        return list(dict.fromkeys(owners[internal] for internal in preempted))

    async def sleep(self, level: int) -> None:
        """Sleeps at level 1 or 2 (else ValueError). Raises EngineBusyError while requests live, or asleep."""
        if level not in (1, 2):
            raise ValueError(f"level must be 1 or 2, not {level}")
        if self._live:
            raise EngineBusyError(f"cannot sleep: {len(self._live)} requests run or wait")
        if self._asleep:
            raise EngineBusyError("the engine sleeps already")
        self._asleep = level
        try:
            await self._llm.sleep(level)
        except BaseException:
            self._asleep = 0
            raise

    async def wake(self) -> None:
        """Undoes sleep; after level 2 the weights are read again. Raises EngineBusyError unless asleep."""
        if not self._asleep:
            raise EngineBusyError("the engine is awake")
        if self._asleep == 2:
            await self._llm.wake_up(["weights"])
            await self._llm.collective_rpc("reload_weights")
            await self._llm.wake_up(["kv_cache"])
        else:
            await self._llm.wake_up()
        self._asleep = 0

    def stats(self) -> EngineStats:
        """The newest figures that the engine core has published."""
        found = self._started.statistics
        # vLLM publishes with each step, and after an abort of the last request there is none.
        live = sum(self._live.values())
        running = min(found.running, live)
        return EngineStats(
            running=running,
            waiting=min(found.waiting, live - running),
            kv_usage=found.kv_usage if live else 0.0,
            batch_size=self._batch_size,
            step_token_budget=self._step_token_budget,
            steps=found.steps,
            output_tokens=found.output_tokens,
            prompt_tokens=found.prompt_tokens,
            cached_prompt_tokens=found.cached_prompt_tokens,
            preemptions=found.preemptions,
            draft_tokens=found.draft_tokens,
            accepted_tokens=found.accepted_tokens,
        )

    async def wait_dead(self) -> str:
        """Returns the reason as soon as the engine core has died."""
        await self._processes.wait()
        return self._death()

    async def close(self) -> None:
        """Aborts what runs and stops the engine core."""
        if self._closed:
            return
        self._closed = True
        self._processes.close()
        if not self._llm.errored:
            await self._llm.abort(list(self._live))
        # Before the core ends, or vLLM would log its end as a failure.
        self._llm.output_handler.cancel()
        await asyncio.gather(self._llm.output_handler, return_exceptions=True)
        await _discard(self._started)

    async def _call(self, method: str, *arguments: Any) -> Any:
        """Runs a utility method of the engine core. Raises EngineDeadError."""
        if self._closed or self._processes.reason:
            raise EngineDeadError("the engine is closed" if self._closed else self._death())
        call = asyncio.ensure_future(self._llm.engine_core.call_utility_async(method, *arguments))
        death = asyncio.ensure_future(self._processes.wait())
        try:
            await asyncio.wait((call, death), return_when=asyncio.FIRST_COMPLETED)
            if death.done():
                raise EngineDeadError(self._death())
            return call.result()
        finally:
            # vLLM never answers a call that its engine core has not taken up before it died.
            call.cancel()
            death.cancel()

    def _on_death(self, reason: str) -> None:
        """Ends the streams at once; vLLM does so only after it has cleaned up."""
        from vllm.v1.engine.exceptions import EngineDeadError as VllmEngineDeadError

        self._llm.output_processor.propagate_error(VllmEngineDeadError())

    def _output_handler_done(self, _: asyncio.Task[None]) -> None:
        if not self._closed:
            self._processes.ended("the engine core has died")

    def _death(self) -> str:
        """Why the engine is dead, with the exception that its processes logged, if any."""
        reason = self._processes.reason or "the engine core has died"
        cause = self._started.failure.cause()
        return f"{reason}: {cause}" if cause else reason


async def _discard(started: StartedVllm) -> None:
    """Stops vLLM's processes and frees what it holds."""
    await asyncio.to_thread(started.llm.shutdown)
    if started.cache is not None:
        await started.cache.close()
    started.failure.close()
    # Freed now rather than when the interpreter ends, where vLLM's destructor fails.
    started.llm = None
    gc.collect()
