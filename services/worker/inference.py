"""InferenceService.Generate: one request from its arrival to its last token."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Iterator

import grpc

from chiron.requests.prefixes import name_prompt
from chiron.requests.tools import one_call
from chiron.rpc.errors import ChironError, Reason, abort
from chiron.rpc.reading import read
from chiron.telemetry import inject
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from services.worker import admission
from services.worker.call_reader import CallReader
from services.worker.came_to import came_to
from services.worker.core import Worker
from services.worker.engines.base import (
    Engine,
    EngineBusyError,
    EngineDeadError,
    EngineRequest,
    InvalidRequestError,
)
from services.worker.engines.calls import Calls
from services.worker.live import LiveRequest
from services.worker.outbox import Outbox
from services.worker.pace import Pace
from services.worker.spans import RequestSpan
from services.worker.tickets import check_prompt, from_router
from services.worker.wire import ResponseWriter

SERVICE = "chiron.v1.InferenceService"
_OWN_FAULTS = (Reason.INTERNAL, Reason.ENGINE_DEAD)
_FINAL = (Reason.INTERNAL, Reason.READER_STALLED)
"""How accepted requests end that nobody takes elsewhere."""
Context = grpc.aio.ServicerContext[bytes, bytes]

_log = logging.getLogger(__name__)


class InferenceServicer:
    """Serves Generate; responses leave as the bytes that were serialised once here."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def handler(self) -> grpc.GenericRpcHandler:
        """The service's handler; a worker has no Route."""
        generate: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_stream_rpc_method_handler(self._generate)
        return grpc.method_handlers_generic_handler(SERVICE, {"Generate": generate})

    async def _generate(self, wire: bytes, context: Context) -> None:
        arrival = time.monotonic()
        try:
            request = read(pb.GenerateRequest, wire)
        except ChironError as error:
            await abort(context, error)  # type: ignore[arg-type]
        with RequestSpan(request, context.invocation_metadata(), self._worker.config.instance_id) as span:
            try:
                await self._serve(request, context, arrival, span)
                return
            except ChironError as error:
                refusal = error
            except Exception as error:
                if context.cancelled() or context.done():
                    return  # a write fails when the client has gone, sometimes before the call is cancelled
                _log.exception("request %r failed", request.request_id)
                refusal = ChironError(Reason.INTERNAL, f"{type(error).__name__}: {error}")
            if refusal.reason in _OWN_FAULTS:
                self._worker.finished.failed += 1
            span.failed(refusal)
            await abort(context, refusal)  # type: ignore[arg-type]

    async def _serve(
        self, request: pb.GenerateRequest, context: Context, arrival: float, span: RequestSpan
    ) -> None:
        worker = self._worker
        admission.check_request(request)
        ticket = worker.tickets.check(request, from_router=from_router(context))
        engine = worker.serving_engine()
        admission.check_target(request, worker.spec)
        terms = admission.settle_terms(request, ticket, worker.spec)
        admission.check_role(worker.role, terms.request_class)
        admission.check_size(request, engine.info)
        with _named():
            calls = await worker.calls(request)
            if calls is not None:
                request.sampling.CopyFrom(calls.sampling)
            admission.check_resume(request, engine)
            prompt = await worker.tokenize(request)
        check_prompt(len(prompt), ticket)
        sampling = admission.fit_context(
            request, prompt, engine.info.max_context_tokens, terms.most_output_tokens
        )
        order = EngineRequest(
            request_id=terms.request_id,
            prompt_token_ids=prompt,
            sampling=sampling,
            delivered_token_ids=request.resume.delivered_token_ids,
            delivered_text_length=request.resume.delivered_text_length,
            priority=terms.engine_priority,
            adapter=request.adapter,
            cache_salt=terms.tenant,
            trace_headers=inject(),
        )
        reader = await self._call_reader(engine, calls, order, request) if calls is not None else None
        # The worker may have changed while a long input was being read.
        engine = worker.serving_engine()
        admission.check_role(worker.role, terms.request_class)
        span.admitted(terms.request_id, sampling)
        await worker.make_way(terms.request_id, request.attempt, terms.tenant)
        task = asyncio.current_task()
        assert task is not None
        resume = request.resume if request.resume.delivered_token_ids else None
        pace = Pace(worker.meter, arrival, terms.elapsed_ms, len(prompt), resume)
        live = LiveRequest(
            request_id=terms.request_id,
            attempt=request.attempt,
            batch=terms.request_class == types_pb2.REQUEST_CLASS_BATCH,
            slots=max(1, sampling.n),
            priority=terms.engine_priority,
            itl_slo_ms=terms.itl_slo_ms,
            task=task,
            tenant=terms.tenant,
            promise=terms.promise,
            pace=pace,
            prompt_tokens=len(prompt) + len(request.resume.delivered_token_ids),
            deadline=arrival + terms.deadline_s,
            resumable=not engine.resume_obstacle(sampling),
            note=span.note,
            prompt=name_prompt(request, terms.tenant) if worker.prefixes.wanted else None,
        )
        writer = ResponseWriter(live.slots, len(order.delivered_token_ids), reader)
        try:
            with worker.accept(live):
                await self._stream(engine, order, live, writer, context)
        except asyncio.CancelledError:
            if live.cut is None:
                if not (live.has_output or resume):
                    elapsed_ms = terms.elapsed_ms + 1e3 * (time.monotonic() - arrival)
                    worker.finished.left(live.promise, elapsed_ms)
                raise
            # The worker itself cancelled a write that the client would not take; the call is still open.
            task.uncancel()
            self._broken(live, live.cut, context)
            raise live.cut from None
        except Exception as error:
            self._broken(live, error, context)
            raise
        finally:
            raised = sys.exception()
            worker.load_board.came_to(lambda: came_to(live, pace, raised, worker.config.instance_id))
        span.finished(pace)
        worker.start_trace.served(span, arrival)

    async def _call_reader(
        self, engine: Engine, calls: Calls, order: EngineRequest, request: pb.GenerateRequest
    ) -> CallReader:
        def read(request: pb.GenerateRequest) -> CallReader:
            return CallReader(
                calls,
                order.prompt_token_ids,
                request_id=order.request_id,
                choices=max(1, order.sampling.n),
                one_call=one_call(request.chat),
                delivered=engine.delivered(order) if order.delivered_token_ids else None,
            )

        with _named():
            # To go through what was delivered takes long where that is long.
            return await self._worker.inputs.read(read, request)

    def _broken(self, live: LiveRequest, error: Exception, context: Context) -> None:
        """Counts a request that has failed, where nobody takes it elsewhere and its caller is still there."""
        reason = error.reason if isinstance(error, ChironError) else Reason.INTERNAL
        if reason in _FINAL and not (live.answered or context.done()):
            self._worker.finished.broken(live.promise)

    async def _stream(
        self,
        engine: Engine,
        order: EngineRequest,
        live: LiveRequest,
        writer: ResponseWriter,
        context: Context,
    ) -> None:
        """Writes what the engine yields; the engine never waits for a write."""
        spacing = self._worker.spacing
        outbox = Outbox(lambda: spacing.interval_s(live.itl_slo_ms))
        reading = asyncio.create_task(self._read(engine, order, live, writer, outbox), name="engine output")
        try:
            if self._worker.mixed.may_lack(live, engine):
                # The engine must know of it first, or it would give the slots to whoever waits already.
                await asyncio.sleep(0)
                await self._worker.mixed.make_room(live, engine)
            while (message := await outbox.take()) is not None:
                live.writing_since = time.monotonic()
                await context.write(message.SerializeToString())
                live.writing_since = None
        finally:
            outbox.drop()
            reading.cancel()
            # Its end is what frees the slot.
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(
        self,
        engine: Engine,
        order: EngineRequest,
        live: LiveRequest,
        writer: ResponseWriter,
        outbox: Outbox,
    ) -> None:
        try:
            await self._fill(engine, order, live, writer, outbox)
        except InvalidRequestError as error:
            outbox.fail(ChironError.invalid([(error.field, error.description)]))
        except EngineBusyError as error:
            outbox.fail(ChironError(Reason.RETRY_ELSEWHERE, str(error)))
        except EngineDeadError as error:
            reason = Reason.STREAM_INTERRUPTED if live.has_output else Reason.ENGINE_DEAD
            outbox.fail(ChironError(reason, f"the engine died: {error}"))
        except Exception as error:
            outbox.fail(error)

    async def _fill(
        self,
        engine: Engine,
        order: EngineRequest,
        live: LiveRequest,
        writer: ResponseWriter,
        outbox: Outbox,
    ) -> None:
        worker, pace = self._worker, live.pace
        delivered = len(order.delivered_token_ids)
        async with contextlib.aclosing(engine.generate(order)) as outputs:  # type: ignore[type-var]
            async for output in outputs:
                if live.cut is not None:
                    raise live.cut
                pace.add(output)
                if live.preempted is not None and live.runs_again():
                    worker.load_board.touch()
                begins = not (live.has_output or delivered)
                if live.prompt is not None and not live.has_output:
                    worker.prefixes.computed(engine, order, live.prompt, pace)
                worker.output_seen(live, output.time)
                for delta in writer.write(output):
                    if begins:
                        delta.origin.CopyFrom(pace.origin(worker.config.spec_version))
                        begins = False
                    outbox.put(delta)
                if writer.complete:
                    live.done = True
                else:
                    outbox.send()
        if not writer.complete:
            raise ChironError(Reason.INTERNAL, "the engine ended its output without a finish reason")
        live.answered = True
        worker.finished.add(pace, batch=live.batch, promise=live.promise)
        outbox.close(pace.usage(), pace.timing(worker.config.instance_id))


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """What an engine refuses becomes the caller's error."""
    try:
        yield
    except InvalidRequestError as error:
        raise ChironError.invalid([(error.field, error.description)]) from error
