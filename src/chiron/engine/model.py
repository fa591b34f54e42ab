"""The engine model: continuous batching with chunked prefill on a latency profile, without clock or I/O."""

from math import inf

from chiron.engine.ahead import RunAhead
from chiron.engine.errors import (
    ContextExceededError,
    DuplicateRequestError,
    EngineStateError,
    InvalidLimitError,
    InvalidRequestError,
    KvCapacityExceededError,
    UnknownRequestError,
)
from chiron.engine.lifecycle import EngineState, Lifecycle
from chiron.engine.outcome import DecodeRun, EngineTotals, StepOutcome
from chiron.engine.profiles import Profile
from chiron.engine.request import EngineRequest, RequestPhase, RequestProgress
from chiron.engine.scheduler import Scheduler
from chiron.engine.sequence import Sequence
from chiron.engine.steps import Stepper

DEFAULT_BATCH_SIZE = 256


class EngineModel:
    """One engine: submit, step, advance, preempt, abort, set limits, sleep and wake.

    Each step schedules as vLLM V1 does: running decodes first; then prompts being computed, in chunks;
    then, if nobody was preempted in this step, the queue's head while a slot, step tokens and KV blocks for
    its whole prompt are free (the head is never overtaken). Decodes are never held back: a step-token
    budget below what they need leaves no room for prefill. When a running request needs a KV block and none
    is available, the running request with the largest (priority, arrival) loses its blocks and waits at its
    old place; prompt and emitted tokens are computed again later, and none is emitted twice.

    State changes when a step begins; its tokens become visible when it ends. Submitting, aborting or
    changing a limit in between takes effect from the next step. Instances are not thread-safe.
    """

    def __init__(
        self,
        profile: Profile,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        step_token_budget: int | None = None,
        report_emissions: bool = True,
    ) -> None:
        """Make a ready, idle engine; call load() to have it load first.

        report_emissions: list every request's tokens in each outcome. That costs time in proportion to the
        running requests; without it a decode run costs the same for any batch, and progress() still tells
        the counts.
        """
        self.profile = profile
        self._scheduler = Scheduler(profile)
        self.pool = self._scheduler.pool
        """The KV cache; its counts change with the steps alone."""
        self._stepper = Stepper(profile, self._scheduler, report_emissions)
        self._lifecycle = Lifecycle(profile)
        self._block_size = profile.block_size
        self._kv_total_tokens = self._scheduler.pool.total * profile.block_size
        # Tokens of the longest request that fits.
        longest = self._kv_total_tokens + 1 - self._scheduler.decoding.positions
        self._longest = min(profile.max_context_tokens, longest)
        self._arrivals = 0
        self.ahead = RunAhead(self._stepper)
        """Runs planned ahead, for a driver that sleeps until something happens."""
        self.set_batch_size(batch_size)
        self.set_step_token_budget(
            profile.default_step_token_budget if step_token_budget is None else step_token_budget
        )

    def submit(self, request: EngineRequest) -> None:
        """Queue a request.

        Raises DuplicateRequestError, ContextExceededError or KvCapacityExceededError (both numbers named),
        InvalidRequestError for more prefix hashes than full blocks, EngineStateError while asleep. While
        the engine loads or wakes, requests wait.
        """
        scheduler = self._scheduler
        if self._lifecycle.sleep_level:
            raise EngineStateError("cannot submit: the engine is asleep")
        if request.request_id in scheduler.sequences:
            raise DuplicateRequestError(request.request_id)
        total = request.prompt_tokens + request.output_tokens
        if total > self.profile.max_context_tokens:
            raise ContextExceededError(total, self.profile.max_context_tokens)
        # Drafts beyond the last token occupy blocks until the step ends.
        most = total + scheduler.decoding.positions - 1
        if most > self._kv_total_tokens:
            raise KvCapacityExceededError(most, self._kv_total_tokens)
        if request.prefix_hashes:
            full_blocks = (request.prompt_tokens + request.resumed_tokens) // self._block_size
            if len(request.prefix_hashes) > full_blocks:
                raise InvalidRequestError(
                    "prefix_hashes",
                    f"{len(request.prefix_hashes)} given for {full_blocks} full prompt blocks",
                )
        prompt = request.prompt_tokens + request.resumed_tokens
        output = request.output_tokens - request.resumed_tokens
        key = request.priority, -1 - self._arrivals if request.goes_on else self._arrivals
        self._arrivals += 1
        given = request.prefix_hashes, request.restored_tokens
        scheduler.add(Sequence(request.request_id, key, prompt, output, *given))

    def submit_plain(
        self, request_id: int, prompt_tokens: int, output_tokens: int, priority: int, resumed_tokens: int
    ) -> None:
        """Queue a request without prefix hashes and restored tokens.

        As submit() does, for a caller that has millions of them: the ranges of the figures are the caller's
        to check.
        """
        scheduler = self._scheduler
        if (
            prompt_tokens + output_tokens > self._longest
            or request_id in scheduler.sequences
            or self._lifecycle.sleep_level
        ):
            # Tells what is wrong.
            self.submit(EngineRequest(request_id, prompt_tokens, output_tokens, priority, (), resumed_tokens))
            return
        arrival = self._arrivals
        self._arrivals = arrival + 1
        prompt, output = prompt_tokens + resumed_tokens, output_tokens - resumed_tokens
        scheduler.add(Sequence(request_id, (priority, arrival), prompt, output))

    def preempt(self, request_id: int) -> bool:
        """Put a running request back to wait; its tokens are kept. Return False if it waits already.

        It may be admitted again in the next step if nobody more urgent wants its slot. Raises
        UnknownRequestError.
        """
        sequence = self._find(request_id)
        if sequence.phase is RequestPhase.WAITING:
            return False
        self.ahead.steps = 0
        self._scheduler.preempt(sequence)
        return True

    def abort(self, request_id: int) -> RequestProgress:
        """End a request now and free what it holds; return how far it came. Raises UnknownRequestError."""
        sequence = self._find(request_id)
        self.ahead.steps = 0
        self._scheduler.end(sequence)
        return self._progress(sequence)

    def progress(self, request_id: int) -> RequestProgress:
        """Return how far a waiting or running request has come. Raises UnknownRequestError."""
        return self._progress(self._find(request_id))

    def __contains__(self, request_id: int) -> bool:
        """Tell whether a request waits or runs."""
        return request_id in self._scheduler.sequences

    @property
    def batch_size(self) -> int:
        """The most requests that may run at once."""
        return self._scheduler.batch_size

    def set_batch_size(self, batch_size: int) -> None:
        """Set the batch size, >= 1, from the next admission on; lowering it drains and evicts nobody."""
        if batch_size < 1:
            raise InvalidLimitError("batch_size", f"must be at least 1, got {batch_size}")
        self.ahead.steps = 0
        self._scheduler.batch_size = batch_size

    @property
    def step_token_budget(self) -> int:
        """The most tokens in one step, unless the running decodes alone need more."""
        return self._scheduler.step_token_budget

    def set_step_token_budget(self, step_token_budget: int) -> None:
        """Set the step-token budget, >= 1, from the next step on."""
        if step_token_budget < 1:
            raise InvalidLimitError("step_token_budget", f"must be at least 1, got {step_token_budget}")
        self.ahead.steps = 0
        self._scheduler.step_token_budget = step_token_budget

    def state(self, now: float) -> EngineState:
        """Return the state at this instant."""
        return self._lifecycle.state(now)

    @property
    def ready_at(self) -> float:
        """Instant from which steps may be taken: -inf if always, +inf while asleep."""
        return self._lifecycle.ready_at

    def load(self, now: float) -> float:
        """Begin loading; return the instant at which the engine is ready. EngineStateError while busy."""
        self._require_idle("load")
        return self._lifecycle.load(now)

    def sleep(self, now: float, level: int = 1) -> None:
        """Sleep at level 1 or 2; the prefix cache is lost. EngineStateError while requests run or wait."""
        self._require_idle("sleep")
        self._lifecycle.sleep(now, level)
        self._scheduler.pool.forget_idle()

    def wake(self, now: float) -> float:
        """Begin to wake; return when the engine is ready. EngineStateError unless asleep."""
        return self._lifecycle.wake(now)

    @property
    def running(self) -> int:
        """Requests that hold a slot."""
        return self._scheduler.running

    @property
    def full(self) -> bool:
        """Whether no slot is free."""
        scheduler = self._scheduler
        return len(scheduler.decoding.members) + len(scheduler.prefilling) >= scheduler.batch_size

    @property
    def decoding(self) -> int:
        """Running requests whose prompt is computed."""
        return len(self._scheduler.decoding.members)

    @property
    def waiting(self) -> int:
        """Requests in the queue, preempted ones included."""
        return len(self._scheduler.waiting)

    @property
    def first_waiting_blocks(self) -> int:
        """KV blocks of the prompt that is next to be admitted, cached ones included; 0: none waits."""
        head = self._scheduler.waiting.head()
        return 0 if head is None else -(-head.target // self._block_size)

    @property
    def kv_total_tokens(self) -> int:
        """Tokens that the KV cache holds, whole blocks."""
        return self._kv_total_tokens

    @property
    def kv_free_tokens(self) -> int:
        """Tokens of KV space that can be taken now, cached blocks that nobody uses included."""
        return self._scheduler.pool.available * self._block_size

    @property
    def kv_used_tokens(self) -> int:
        """Tokens of KV space in blocks that running requests hold."""
        return self.kv_total_tokens - self.kv_free_tokens

    @property
    def prefix_cache_tokens(self) -> int:
        """Tokens of KV space in the prefix cache, used or not."""
        return self._scheduler.pool.cached * self._block_size

    @property
    def totals(self) -> EngineTotals:
        """Counters since the engine was made."""
        return EngineTotals(
            steps=self._stepper.steps,
            prefill_tokens=self._stepper.prefill_tokens,
            emitted_tokens=self._stepper.emitted_tokens,
            draft_tokens=self._stepper.draft_tokens,
            accepted_tokens=self._stepper.accepted_tokens,
            cached_tokens=self._scheduler.cached_tokens,
            finished=self._scheduler.finished,
            preemptions=self._scheduler.preemptions,
        )

    def running_ids(self) -> list[int]:
        """Ids of the running requests: decoding ones first, then those computing their prompt."""
        return [
            *self._scheduler.decoding.members,
            *(sequence.request_id for sequence in self._scheduler.prefilling),
        ]

    def waiting_ids(self) -> list[int]:
        """Ids of the waiting requests, next to be admitted first; O(n log n)."""
        return [sequence.request_id for sequence in self._scheduler.waiting.in_order()]

    def step(self, now: float, time_factor: float = 1.0) -> StepOutcome | None:
        """Take one step at `now` (seconds, the caller's clock); None when there is nothing to do.

        time_factor multiplies the step's duration: the caller's place for noise. Raises EngineStateError
        before the engine is ready.
        """
        if now < self._lifecycle.ready_at:
            raise EngineStateError(f"cannot step: the engine is {self._lifecycle.state(now)}")
        if time_factor <= 0:
            raise InvalidLimitError("time_factor", f"must be positive, got {time_factor}")
        self.ahead.steps = 0
        return self._stepper.take_mixed(time_factor) if self._scheduler.sequences else None

    def advance(
        self, now: float, *, until: float = inf, max_steps: int | None = None, time_factor: float = 1.0
    ) -> StepOutcome | None:
        """Take one step, or all the identical decode steps up to the next finish at once.

        A run ends with the first step in which a request finishes, before KV blocks run out, after
        max_steps, and before the first step that would begin at or after `until`; at least one step is
        taken. It equals the same single steps, but for the rounding of the summed duration. None when there
        is nothing to do.
        """
        if now < self._lifecycle.ready_at:
            raise EngineStateError(f"cannot step: the engine is {self._lifecycle.state(now)}")
        if time_factor <= 0:
            raise InvalidLimitError("time_factor", f"must be positive, got {time_factor}")
        if until <= now:
            raise InvalidLimitError("until", f"must be later than now ({now}), got {until}")
        if max_steps is not None and max_steps < 1:
            raise InvalidLimitError("max_steps", f"must be at least 1, got {max_steps}")
        if not self._scheduler.sequences:
            return None
        self.ahead.steps = 0
        stepper = self._stepper
        steps = stepper.run_steps(max_steps)
        if not steps:
            return stepper.take_mixed(time_factor)
        if until < inf:
            steps = stepper.steps_begun_within(until - now, steps, time_factor)
        return stepper.take_run(steps, stepper.run_seconds(steps, time_factor))

    def decode_run(self, time_factor: float = 1.0, max_steps: int | None = None) -> DecodeRun | None:
        """Return the run that advance() would take with no other bound than max_steps, without taking it;
        None if it is no decode run.
        """
        stepper = self._stepper
        steps = stepper.run_steps(max_steps)
        return DecodeRun(steps, stepper.run_seconds(steps, time_factor)) if steps else None

    def decoding_progress(self, min_emitted_tokens: int = 0) -> list[tuple[int, int, int]]:
        """Return (request id, tokens in the KV cache, emitted tokens) of the decoding requests.

        Only those that have emitted at least so many here; tokens are as of the end of the last step.
        """
        return self._scheduler.decoding.progress(min_emitted_tokens)

    def _find(self, request_id: int) -> Sequence:
        try:
            return self._scheduler.sequences[request_id]
        except KeyError:
            raise UnknownRequestError(request_id) from None

    def _progress(self, sequence: Sequence) -> RequestProgress:
        emitted, computed = sequence.emitted, sequence.computed
        if sequence.phase is RequestPhase.DECODING:
            emitted = self._scheduler.decoding.emitted(sequence)
            computed = self._scheduler.decoding.clock + sequence.offset
        return RequestProgress(
            request_id=sequence.request_id,
            phase=sequence.phase,
            priority=sequence.key[0],
            emitted_tokens=emitted,
            remaining_tokens=sequence.output - emitted,
            computed_tokens=computed,
            cached_tokens=sequence.cached_tokens,
            preemptions=sequence.preemptions,
        )

    def _require_idle(self, operation: str) -> None:
        if self._scheduler.sequences:
            raise EngineStateError(
                f"cannot {operation}: {self.running} requests run and {self.waiting} wait in this engine"
            )
