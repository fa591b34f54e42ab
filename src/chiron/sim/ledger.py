"""What became of every request so far, without an object for each."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from math import isnan, nan

from chiron.engine import EngineRequest
from chiron.policy.words import RequestClass
from chiron.sim.settings import SimSettings
from chiron.sim.step_history import REQUESTS, StepHistory
from chiron.sim.workload import InvalidWorkloadError, Workload

OPEN, FINISHED, REFUSED = 0, 1, 2
"""States of a request: under way (or still to come), finished, refused."""


class Ledger:
    """The requests of one run by their index in the workload."""

    def __init__(self, settings: SimSettings, workload: Workload) -> None:
        check_fit(settings, workload)
        count = len(workload)
        self.arrival_s: list[float] = workload.arrival_s.tolist()
        self.prompt_tokens: list[int] = workload.prompt_tokens.tolist()
        self.output_tokens: list[int] = workload.output_tokens.tolist()
        self.model: list[int] = workload.model.tolist()
        self.deadline_s: list[float] = workload.deadline_s.tolist()
        self.is_batch = (workload.request_class == RequestClass.BATCH).astype("u1").tobytes()
        queues = settings.queues
        self.priority = self.is_batch if queues.preemption or queues.priorities else bytes(count)
        """In engines: lower is more urgent. Interactive requests go first where the policy tells classes."""
        self.prefix = workload.prefix
        self.refuse_late = None if workload.refuse_late is None else workload.refuse_late.tobytes()
        """Which callers asked to be refused when their SLO cannot be met; None: nobody."""
        self.tenant = workload.tenant
        """Who pays for each; None: one tenant for all."""
        self.first_token_s = array("d", [nan]) * count
        self.finish_s = array("d", [nan]) * count
        self.longest_gap_s = array("d", [0.0]) * count
        self.submitted_s = array("d", [0.0]) * count
        """When it came to the engine that it is in."""
        self.state = bytearray(count)
        self.delivered: dict[int, int] = {}
        """Tokens that earlier engines emitted for a request that was put back."""
        self.last_token_s: dict[int, float] = {}
        """When a request that was put back stopped receiving tokens."""
        self.resumed_s: dict[int, float] = {}
        """When a request that had lost its slot had a token again for the last time."""
        self.came_s: dict[int, float] = {}
        """When a request that has moved from another instance came to the one that it is in."""
        self.handing: set[int] = set()
        """Requests that were handed over and have had no token since."""
        self.handed_gaps_s: list[float] = []
        """For how long each request that was handed over had no token."""
        self.times_preempted: dict[int, int] = {}
        self.home: dict[int, tuple[str, int]] = {}
        """Instance whose host keeps the KV cache of a request that was preempted, and its tokens."""
        self.look_every = max(1, count // REQUESTS)
        """The steps of each so-manieth request are looked at for the percentile of its gaps."""
        self.histories: list[StepHistory] = []
        """What each engine did, in the order of their start."""
        self.open_interactive = count - sum(self.is_batch)
        self.open_batch = sum(self.is_batch)
        self.has_batch = self.open_batch > 0
        self.refused = 0
        self.preemptions = 0
        self.retries = 0
        self.finished_tokens = 0

    def __len__(self) -> int:
        return len(self.arrival_s)

    def engine_request(
        self, request_id: int, restored_tokens: int = 0, goes_on: bool = False
    ) -> EngineRequest:
        """The request as an engine takes it, what was delivered before included."""
        return EngineRequest(
            request_id,
            self.prompt_tokens[request_id],
            self.output_tokens[request_id],
            self.priority[request_id],
            self.prefix[request_id] if self.prefix is not None else (),
            self.delivered.get(request_id, 0),
            restored_tokens,
            goes_on,
        )

    def finish(self, request_ids: Sequence[int], now: float) -> None:
        """Note that the last tokens of these requests came."""
        states, finish_s, output_tokens, is_batch = (
            self.state,
            self.finish_s,
            self.output_tokens,
            self.is_batch,
        )
        for request_id in request_ids:
            # As _close() does, for every request that is served.
            if states[request_id]:
                raise AssertionError(f"request {request_id} ended twice")
            states[request_id] = FINISHED
            finish_s[request_id] = now
            self.finished_tokens += output_tokens[request_id]
            if is_batch[request_id]:
                self.open_batch -= 1
            else:
                self.open_interactive -= 1
            if self.delivered:
                self.delivered.pop(request_id, None)

    def refuse(self, request_id: int) -> None:
        """Note that admission turned the request away."""
        self._close(request_id, REFUSED)
        self.refused += 1

    def put_back(self, request_id: int, emitted_tokens: int, now: float) -> None:
        """Note that an engine gave the request up after so many tokens; they are not emitted again."""
        self.delivered[request_id] = self.delivered.get(request_id, 0) + emitted_tokens
        # Who waited there has been without tokens since before.
        self.last_token_s.setdefault(request_id, now)

    def end_gap(self, request_id: int, now: float) -> None:
        """Note that a request that lost its slot has its next token now."""
        since = self.last_token_s.pop(request_id, None)
        if since is not None and not isnan(self.first_token_s[request_id]):
            self.resumed_s[request_id] = now
            gap_s = now - since
            if gap_s > self.longest_gap_s[request_id]:
                self.longest_gap_s[request_id] = gap_s
            if request_id in self.handing:
                self.handing.remove(request_id)
                self.handed_gaps_s.append(gap_s)

    def _close(self, request_id: int, state: int) -> None:
        if self.state[request_id] != OPEN:
            raise AssertionError(f"request {request_id} ended twice")
        self.state[request_id] = state
        if self.is_batch[request_id]:
            self.open_batch -= 1
        else:
            self.open_interactive -= 1


def check_fit(settings: SimSettings, workload: Workload) -> None:
    """Raise InvalidWorkloadError when a request names no model or fits into no engine of its model."""
    models = settings.models
    if len(workload) and int(workload.model.max()) >= len(models):
        raise InvalidWorkloadError(
            "model", f"{int(workload.model.max())} is no index into {len(models)} models"
        )
    totals = workload.prompt_tokens.astype("i8") + workload.output_tokens
    for index, model in enumerate(models):
        limit = min(model.profile.max_context_tokens, model.profile.kv_blocks * model.profile.block_size)
        too_long = (workload.model == index) & (totals > limit)
        if too_long.any():
            worst = int(too_long.argmax())
            raise InvalidWorkloadError(
                "prompt_tokens",
                f"request {worst} needs {int(totals[worst])} tokens with its output; "
                f"{model.name!r} holds {limit}",
            )
