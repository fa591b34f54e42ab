"""What autoscalers see: frozen snapshots of what production reports.

Live services build them from the wire (`chiron.policy.sources` says from which message each field comes), the
simulator from its modelled telemetry; nothing else reaches a policy. A field without a live source says so.
Hidden facts (output lengths, future arrivals, true step times) are not in them. Times are seconds, sizes
tokens, and every field says how fresh it is. "Report" means the local agent's report, at 1 Hz and at once on
a change of state; with late or lost reports it is as old as `report_age_s` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from chiron.policy.words import Phase, Role

NEVER_S = 1e9
"""Stands for no deadline and for no SLO, in seconds: finite, so that it can be calculated with."""
HANDED_OVER = 0.9
"""Share of the slots, or of an interval, from which all are taken: the router fills a slot that has become
free a moment later."""


def decodes(output_tokens: int, accepted_tokens: int) -> int:
    """How often a request has decoded in a step; one output token comes of each time without drafts.

    Never below 0: drafts that are accepted beyond the end of an answer are no output.
    """
    return max(0, output_tokens - accepted_tokens)


@dataclass(frozen=True, slots=True)
class InstanceSample:
    """One instance over one interval: a local autoscaler's input (WatchStatistics on the wire).

    Freshness: made at the end of the interval on the same node, so at most milliseconds old.
    """

    interval_s: float
    """Time that the counts cover, > 0."""
    batch_size: int
    """In force at the end of the interval, in requests."""
    max_batch_size: int
    """Ceiling that the engine allocated for, in requests."""
    step_token_budget: int
    """In force at the end of the interval, in tokens."""
    max_step_token_budget: int
    """Ceiling that the engine allocated for, in tokens."""
    running_interactive: int
    """Interactive requests in the batch at the end of the interval."""
    running_batch: int
    waiting_interactive: int
    """Interactive requests in the engine's queue at the end of the interval."""
    waiting_batch: int
    steps: int
    """Engine steps in the interval."""
    output_tokens: int
    """Tokens generated in the interval."""
    prompt_tokens: int
    """Prompt tokens computed in the interval, cached ones excluded; live, once the prompt is whole."""
    itl_mean_s: float
    """Mean time between tokens over the interval's tokens; 0: none."""
    itl_p95_s: float
    """95th percentile of the same; 0: none."""
    itl_slo_s: float
    """Tightest ITL SLO among the requests that run; 0: none runs."""
    kv_usage: float
    """Share of the KV cache in use at the end of the interval, 0 to 1."""
    kv_capacity_tokens: int
    preemptions: int
    """Requests preempted in the interval for lack of KV space, not by command."""
    saturated: bool
    """All slots were taken or requests waited throughout the interval: HANDED_OVER of both is enough."""
    draft_tokens: int = 0
    """Tokens drafted in the interval and computed by its steps; 0 without speculative decoding."""
    accepted_tokens: int = 0
    """Those of them that were accepted, and so are among the output tokens."""

    @property
    def decodes(self) -> int:
        """See the function `decodes`."""
        return decodes(self.output_tokens, self.accepted_tokens)

    @property
    def computed_tokens(self) -> int:
        """Tokens that the steps computed: decodes with their drafts, and prompts."""
        return self.decodes + self.draft_tokens + self.prompt_tokens


@dataclass(frozen=True, slots=True)
class FleetInstance:
    """One instance that holds capacity, as the global autoscaler sees it.

    Freshness: its node's last report.
    """

    instance_id: str
    node_id: str
    role: Role
    phase: Phase
    batch_size: int
    """Most requests that it runs at once now."""
    safe_batch_size: int
    """Largest batch size that its local autoscaler expects to keep the ITL SLO; at first the batch size."""
    running_interactive: int = 0
    running_batch: int = 0
    waiting_interactive: int = 0
    """In the engine's queue."""
    waiting_batch: int = 0
    tokens_per_s: float = 0.0
    """Output tokens per second over the last report interval."""
    step_token_budget: int = 0
    """Most tokens that one of its steps computes now; 0: not reported."""
    step_tokens: float = 0.0
    """Mean tokens that a step computed over the last report interval: of decoding requests, drafts included,
    and of prompts, cached ones excluded. 0: there was no step."""
    kv_usage: float = 0.0
    """Share of the KV cache in use, 0 to 1."""
    kv_capacity_tokens: int = 0
    ready_in_s: float = 0.0
    """Estimated time until it serves: of a LOADING one from the measured load times; 0 when READY."""
    phase_age_s: float = 0.0
    """Time in its phase, on the controller's clock."""
    can_wake: bool = False
    """Of a SLEEPING one: no awake instance owns its GPUs, and they have room for it: it can wake now."""
    can_sleep: bool = False
    """Of a READY one: its model may sleep, and its node has host memory for it."""
    report_age_s: float = 0.0
    """Age of the figures of its load; the worker's and the agent's part together."""
    role_fixed: bool = False
    """An operator has set its role: a change of it would not be carried out."""


@dataclass(frozen=True, slots=True)
class BatchBacklog:
    """One request group of a model's batch work: of one router's queue, or of one durable queue.

    Freshness: the router's last report.
    """

    deadline_in_s: float
    """From now to the group's earliest deadline; negative: passed; near NEVER_S: none."""
    requests: int
    """Requests of the group that wait, running ones excluded."""
    prompt_tokens: int
    """Sum of their prompt lengths."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a model's routers saw since the last snapshot, and what ended.

    Freshness: what arrived and waits, the routers' last reports; what finished, the agents'. Only requests
    that were answered whole have finished.
    """

    interval_s: float
    """Time that the routers' counts cover; 0: no report has come since the last snapshot."""
    arrived_interactive: int = 0
    arrived_batch: int = 0
    queued_interactive: int = 0
    """Interactive requests that wait in the routers now."""
    finished_interactive: int = 0
    finished_batch: int = 0
    finished_output_tokens: int = 0
    """Output tokens of the requests that ended."""
    finished_prompt_tokens: int = 0
    """Prompt tokens of the requests that ended."""
    finished_service_s: float = 0.0
    """Sum of the times from being sent to the instance that answered to the last token: with the wait in its
    engine, without the wait in a router."""
    finished_output_tokens_sq: float = 0.0
    """Sum of the squares of their output lengths, in tokens²: what the variance of lengths is made from."""
    finished_batch_output_tokens: int = 0
    """The batch requests' part of `finished_output_tokens`."""
    finished_batch_prompt_tokens: int = 0
    """The batch requests' part of `finished_prompt_tokens`."""
    finished_batch_service_s: float = 0.0
    """The batch requests' part of `finished_service_s`."""
    finished_batch_output_tokens_sq: float = 0.0
    """The batch requests' part of `finished_output_tokens_sq`, in tokens²."""


@dataclass(frozen=True, slots=True)
class ModelFleet:
    """One model: its limits, its instances, its demand."""

    name: str
    gpus_per_instance: int
    min_instances: int
    max_instances: int
    """0: no limit."""
    ttft_slo_s: float
    """Default TTFT SLO of interactive requests; NEVER_S: none."""
    itl_slo_s: float
    """Default ITL SLO of interactive requests; NEVER_S: none."""
    batch_itl_slo_s: float
    """ITL SLO under which batch-only work runs; NEVER_S: none."""
    instances: tuple[FleetInstance, ...]
    traffic: Traffic
    backlog: tuple[BatchBacklog, ...] = ()
    """Request groups in the order of their deadlines."""
    load_time_s: float = 30.0
    """95th percentile of the measured times from placement to ready; configured until measured."""
    wake_time_s: float = 5.0
    """The same for waking."""
    initial_batch_size: int = 256
    """Batch size of an instance that starts, in requests."""
    max_context_tokens: int = 0
    """Longest prompt and output together that an engine of the model takes, in tokens; 0: not reported."""
    gpu_type: str = ""
    """The GPU type that its instances need, a value of `FleetSnapshot.gpu_types`; "": any. No live source: a
    spec names no GPU type, and placement takes any."""
    priority: int = 0
    """Who gets GPUs first under contention: a lower value is more urgent."""


@dataclass(frozen=True, slots=True)
class FleetSnapshot:
    """The cluster at one tick of the global autoscaler."""

    now_s: float
    """Monotonic time of the tick."""
    models: tuple[ModelFleet, ...]
    free_gpus: Mapping[str, int] = field(default_factory=dict)
    """Node → healthy GPUs on which an instance of any model may start. No awake instance owns them; of those
    that sleepers keep a part of, only such as have room for any model are in it, or none at all. Whether a
    sleeper may have its own GPUs back `can_wake` alone says. Freshness: reports."""
    gpu_types: Mapping[str, str] = field(default_factory=dict)
    """Node → the type of its GPUs; a node that is not listed has the type "". Fixed while a node lives."""
    gpu_budget: int = 0
    """Most GPUs that may be held at once; 0: no limit but the cluster's size."""
