"""The worker itself: its engine, state, live requests and limits; the servicers translate to gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator, Sequence

from chiron.requests.tools import parses_calls
from chiron.rpc.errors import FULL, ChironError, Reason
from chiron.v1 import cluster_pb2, types_pb2
from chiron.v1 import inference_pb2 as pb
from services.worker.board import Board
from services.worker.config import WorkerConfig
from services.worker.engines.base import Engine, EngineError
from services.worker.engines.calls import Calls
from services.worker.engines.registry import load_engine
from services.worker.finished import Finished
from services.worker.hand_over import HandOvers
from services.worker.inputs import Inputs
from services.worker.live import LiveRequest, LiveRequests, Occupancy
from services.worker.meter import Meter
from services.worker.mixed import MixedWork
from services.worker.model import engine_config
from services.worker.outbox import Spacing
from services.worker.preemptions import OwnPreemptions
from services.worker.prefixes import PrefixBook
from services.worker.saturation import Saturation
from services.worker.sleep import SleepControl
from services.worker.spans import StartTrace
from services.worker.state import DRAINING, FAILED, LOADING, READY, WorkerState
from services.worker.tickets import TicketDesk

REFRESH_S = 0.25
"""While tokens flow, subscribers hear at least this often how the KV cache fills."""
_CUT_GRACE_S = 1.0
GIVEN_UP = (Reason.STREAM_INTERRUPTED, Reason.RETRY_ELSEWHERE, Reason.ENGINE_DEAD)
"""How requests end that go on elsewhere."""
_STALL_CHECKS = 4

_log = logging.getLogger(__name__)


class Worker:
    """One engine and what it is asked to do. All methods run on one event loop."""

    def __init__(self, config: WorkerConfig, spec: cluster_pb2.ModelSpec) -> None:
        self.config = config
        self.spec = spec
        self.role = types_pb2.Role.Value(f"ROLE_{config.role.value.upper()}")
        self.address = ""
        """host:port of the inference interface, once it listens."""
        self.load_board = Board()
        self.statistics_board = Board()
        self.state = WorkerState(self._state_changed)
        self.live = LiveRequests()
        self.meter = Meter()
        self.finished = Finished()
        self.tickets = TicketDesk(
            config.instance_id,
            config.incarnation,
            required=config.require_tickets,
            on_expired=self.load_board.touch,
        )
        self.own_preemptions = OwnPreemptions()
        self.mixed = MixedWork(config.preemption, self)
        self.hand_overs = HandOvers(self)
        self.prefixes = PrefixBook(self.load_board.touch)
        self.saturation = Saturation()
        self.spacing = Spacing(
            config.messages_per_s, config.longest_hold_ms / 1e3, lambda: self.live.streaming
        )
        self.start_trace = StartTrace(config.instance_id)
        self.engine: Engine | None = None
        self.load_ms = 0.0
        self.died = asyncio.Event()
        """Set when a loaded engine has died."""
        self._created = time.monotonic()
        self._refresh_at = 0.0
        self._sleep = SleepControl(self.state, self.live, finish=self._let_finish, fail=self._fail)
        self.inputs = Inputs()

    # -- life --------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Loads the engine and watches it until it dies; a failure to load becomes the state FAILED."""
        spec = self.spec
        try:
            kind = load_engine(spec.engine)
            self.engine = await kind.start(engine_config(spec, self.config.instance_id))
        except Exception as error:
            # Whatever a loading engine raises must reach the operator as this instance's reason.
            if not isinstance(error, EngineError):
                _log.exception("the engine raised an unexpected error while loading")
            reason = str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
            _log.error("cannot load %s: %s", spec.name, reason)
            self._fail(f"cannot load: {reason}")
            return
        self.prefixes.follow(self.engine)
        self.load_ms = 1e3 * (time.monotonic() - self._created)
        self.start_trace.loaded(self.load_ms)
        if self.state.value == LOADING:
            self.state.move(READY)
            _log.info("%s is ready after %.1f s", spec.name, self.load_ms / 1e3)
        reason = await self.engine.wait_dead()
        _log.error("the engine died: %s", reason)
        self._fail(f"engine died: {reason}")
        self.died.set()

    def cannot_report(self, error: Exception) -> None:
        """The engine's figures make no report: a worker that nobody can watch must not serve."""
        if self.state.can(FAILED):
            _log.error("the engine's figures cannot be reported", exc_info=error)
            self._fail(f"cannot report: {type(error).__name__}: {error}")

    async def close(self) -> None:
        """Ends subscriptions and stops the engine."""
        self.inputs.close()
        self.mixed.close()
        self.hand_overs.close()
        self.load_board.close()
        self.statistics_board.close()
        if self.engine is not None:
            await self.engine.close()

    # -- requests ----------------------------------------------------------------------------------

    def serving_engine(self) -> Engine:
        """The engine, when it takes requests. Raises ChironError (RETRY_ELSEWHERE) otherwise."""
        if self.engine is None or self.state.value != READY:
            raise ChironError(Reason.RETRY_ELSEWHERE, f"this worker is {self.state.describe()}")
        return self.engine

    async def tokenize(self, request: pb.GenerateRequest) -> Sequence[int]:
        """Token ids of a request's input. Raises what `Engine.tokenize` does."""
        return await self.inputs.read(self.serving_engine().tokenize, request)

    async def calls(self, request: pb.GenerateRequest) -> Calls | None:
        """How the calls of a request come about; None: they stay text. Raises what `Engine.calls` does."""
        if not parses_calls(request):
            return None
        return await self.inputs.read(self.serving_engine().calls, request)

    async def make_way(self, request_id: str, attempt: int, tenant: str) -> None:
        """Ends an older live attempt of the same request. Raises ChironError (DUPLICATE_REQUEST)."""
        known = self.live.get(request_id)
        if known is None:
            return
        if tenant != known.tenant:
            # Ids are the clients' own choice; nobody may end another's request by guessing one.
            raise ChironError(
                Reason.DUPLICATE_REQUEST, f"request {request_id} is live here for another tenant"
            )
        if attempt <= known.attempt:
            raise ChironError(
                Reason.DUPLICATE_REQUEST,
                f"request {request_id} is live here with attempt {known.attempt}; {attempt} is not newer",
                metadata={"attempt": str(known.attempt)},
            )
        known.cut = ChironError(Reason.ABORTED, f"superseded by attempt {attempt}")
        await self.end([known])

    @contextlib.contextmanager
    def accept(self, request: LiveRequest) -> Iterator[None]:
        """Keeps a request live for the block.

        Raises ChironError (RETRY_ELSEWHERE, with the metadata FULL) when too many would wait. A request of
        more choices than there will ever be places for is taken while nothing else is there. Batch work that
        gives way takes no place from an interactive request.
        """
        most = self.serving_engine().stats().batch_size + self.config.max_waiting
        taken = sum(self.live.slots)
        if not request.batch and self.mixed.enabled:
            taken = self.live.slots[False]
        if taken and taken + request.slots > most:
            text = f"all slots are taken and {self.config.max_waiting} or more requests wait in this worker"
            raise ChironError(Reason.RETRY_ELSEWHERE, text, metadata=FULL)
        if self.live.get(request.request_id) is not None:
            raise ChironError(Reason.DUPLICATE_REQUEST, f"request {request.request_id} is live here")
        request.accepted_at = time.monotonic()
        self.live.add(request)
        self.mixed.accepted(request)
        self.load_board.started(request.request_id)
        self.note_saturation()
        interrupted = False
        try:
            yield
        except ChironError as error:
            interrupted = error.reason in GIVEN_UP
            raise
        finally:
            self.live.remove(request)
            self.meter.ended(batch=request.batch)
            self.load_board.finished(request.request_id, interrupted=interrupted)
            self.note_saturation()

    def output_seen(self, request: LiveRequest, now: float) -> None:
        """A request had output at `now`: its first makes it run, and time passes for the KV figures."""
        if not request.has_output:
            self.live.begun(request)
            self.note_saturation()
        elif now < self._refresh_at:
            return
        self._refresh_at = now + REFRESH_S
        self.load_board.touch()

    def occupancy(self) -> Occupancy:
        """Slots taken and asked for, by class."""
        if self.engine is None:
            return self.live.occupancy(engine_running=0, engine_waiting=0, batch_size=0)
        stats = self.engine.stats()
        return self.live.occupancy(
            engine_running=stats.running, engine_waiting=stats.waiting, batch_size=stats.batch_size
        )

    def note_saturation(self) -> None:
        """Takes down whether all slots are taken or requests wait, as of now."""
        if self.engine is not None:
            load = self.occupancy()
            running = load.running.interactive + load.running.batch
            waiting = load.waiting.interactive + load.waiting.batch
            batch_size = self.engine.stats().batch_size
            self.saturation.note(
                running=running, waiting=waiting, batch_size=batch_size, now=time.monotonic()
            )

    async def watch_readers(self) -> None:
        """Ends streams whose client has taken nothing for config.reader_stall_s; idle, it sets no timer."""
        stall_s = self.config.reader_stall_s
        while True:
            await self.live.busy.wait()
            await asyncio.sleep(stall_s / _STALL_CHECKS)
            latest = time.monotonic() - stall_s
            stalled = [live for live in self.live if live.writing_since and live.writing_since < latest]
            for request in stalled:
                _log.warning("the client of %s took nothing for %g s", request.request_id, stall_s)
                text = f"the client took nothing for {stall_s:g} s"
                request.cut = ChironError(Reason.READER_STALLED, text)
            await self.end(stalled)

    # -- control -----------------------------------------------------------------------------------

    async def set_limits(self, batch_size: int, step_token_budget: int) -> tuple[int, int]:
        """Sets what is not 0 and returns what is in force. Raises ChironError that names the field."""
        engine = self._loaded_engine()
        try:
            await engine.set_limits(batch_size=batch_size, step_token_budget=step_token_budget)
        except ValueError as error:
            field, _, what = str(error).partition(": ")
            raise ChironError.invalid([(field, what or str(error))]) from error
        self._changed()
        stats = engine.stats()
        return stats.batch_size, stats.step_token_budget

    def set_role(self, role: types_pb2.Role.ValueType) -> None:
        """Takes another role; what runs goes on. Raises ChironError for no role.

        An interactive instance hands back at once what batch work waits in it.
        """
        if role not in types_pb2.Role.values() or role == types_pb2.ROLE_UNSPECIFIED:
            raise ChironError.invalid([("role", f"must be interactive, mixed or batch, not {role}")])
        self.role = role
        if role == types_pb2.ROLE_INTERACTIVE:
            self.mixed.hand_back(0.0)
        self._changed()

    async def preempt(self, request_ids: Sequence[str]) -> Sequence[str]:
        """Puts running requests back into the engine's queue; returns those that ran."""
        preempted = await self.put_back(request_ids)
        self.mixed.mark(one for key in preempted if (one := self.live.get(key)) is not None)
        return preempted

    async def put_back(self, request_ids: Sequence[str]) -> Sequence[str]:
        """Has the engine preempt requests and counts it; returns those that ran."""
        preempted = await self._loaded_engine().preempt(request_ids)
        ran = [request for request_id in preempted if (request := self.live.get(request_id)) is not None]
        self.own_preemptions.commanded(sum(request.slots for request in ran))
        self._changed()
        return preempted

    async def drain(self, timeout_s: float) -> int:
        """Refuses new requests and waits for the live ones; those left after `timeout_s` (0: none) are cut.

        Returns how many were cut.
        """
        if self.state.can(DRAINING):
            self.state.move(DRAINING)
        return await self._let_finish(timeout_s)

    async def sleep(self, level: int, drain_timeout_s: float | None = None) -> int:
        """Takes the weights off the GPU and returns how many requests were cut; see SleepControl.sleep."""
        return await self._sleep.sleep(self._loaded_engine(), level, drain_timeout_s)

    async def wake(self) -> None:
        """Returns when the engine serves again; see SleepControl.wake."""
        await self._sleep.wake(self._loaded_engine())

    # -- helpers -----------------------------------------------------------------------------------

    async def _let_finish(self, timeout_s: float) -> int:
        """Waits for the live requests; cuts those left after `timeout_s` (0: none) and returns how many."""
        try:
            async with asyncio.timeout(timeout_s or None):
                await self.live.idle.wait()
        except TimeoutError:
            left = list(self.live)
            text = "this worker is draining and its time is up"
            for request in left:
                reason = Reason.STREAM_INTERRUPTED if request.has_output else Reason.RETRY_ELSEWHERE
                request.cut = ChironError(reason, text)
            await self.end(left)
            return len(left)
        return 0

    def _loaded_engine(self) -> Engine:
        if self.engine is None or self.state.value == FAILED:
            raise ChironError(Reason.BUSY, f"the worker is {self.state.describe()}")
        return self.engine

    async def end(self, requests: Sequence[LiveRequest]) -> None:
        """Ends requests whose `cut` says why; one whose reader takes nothing is cancelled after a moment."""
        if self.engine is not None:
            for request in requests:
                await self.engine.abort(request.request_id)
        if not await _all_ended(requests):
            for request in requests:
                if not request.ended.is_set():
                    request.task.cancel()
            await _all_ended(requests)

    def _fail(self, reason: str) -> None:
        if self.state.can(FAILED):
            self.state.move(FAILED, reason)

    def _state_changed(self) -> None:
        self.load_board.touch()
        self.statistics_board.touch()

    def _changed(self) -> None:
        self.note_saturation()
        self._state_changed()


async def _all_ended(requests: Sequence[LiveRequest]) -> bool:
    """Waits a moment; False when it was not enough."""
    try:
        async with asyncio.timeout(_CUT_GRACE_S):
            for request in requests:
                await request.ended.wait()
    except TimeoutError:
        return False
    return True
