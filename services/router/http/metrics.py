"""What the HTTP door counts, and the gauges of the router around it, for Prometheus.

Labels have few values: endpoints are routes, and a model that is not applied is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from chiron.policy.words import RequestClass
from chiron.v1 import inference_pb2, types_pb2
from services.router.placer import Placer
from services.router.request import PendingRequest
from services.router.serving import Serving

_LEFT = 499
"""Status of a request whose client went before its answer began."""
_TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_DURATION_S = (0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Metrics:
    """Of one router."""

    def __init__(self, placer: Placer, serving: Serving) -> None:
        self._placer = placer
        self._serving = serving
        self._gauges: list[Metric] = []
        self.connections: Callable[[], tuple[int, Mapping[str, int]]] = lambda: (0, {})
        """Tells how many there are, and how many were ended unasked since the start, by the error's code."""
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.registry.register(self)
        by_request = ("endpoint", "model", "class")
        self._requests = Counter(
            "chiron_http_requests",
            "HTTP requests that have ended, by the status of their answer.",
            (*by_request, "status"),
            registry=self.registry,
        )
        self._duration = Histogram(
            "chiron_http_request_duration_seconds",
            "From a request's arrival to the end of its answer.",
            by_request,
            buckets=_DURATION_S,
            registry=self.registry,
        )
        self._ttft = Histogram(
            "chiron_http_ttft_seconds",
            "From a request's arrival to the first token of its answer.",
            ("model", "class"),
            buckets=_TTFT_S,
            registry=self.registry,
        )
        self._tokens = Counter(
            "chiron_http_tokens",
            "Tokens of requests whose answer is whole: prompt, cached (of the prompt), completion.",
            ("model", "class", "kind"),
            registry=self.registry,
        )
        self._refusals = Counter(
            "chiron_http_errors",
            "HTTP requests that were refused or failed, by the error's code.",
            ("endpoint", "code"),
            registry=self.registry,
        )

    def ended(
        self,
        endpoint: str,
        request: PendingRequest | None,
        status: int,
        duration_s: float,
        *,
        code: str | None,
        ttft_ms: float | None,
        usage: inference_pb2.Usage | None,
    ) -> None:
        """One request is over.

        Args:
            endpoint: its route; `other` for paths at which there is nothing.
            request: what it asked to be generated; None: nothing.
            status: of the answer; 0: none was begun.
            duration_s: from its arrival, in seconds.
            code: of the error; None: it went well, or its client left.
            ttft_ms: to its first token, in milliseconds; None: there was none.
            usage: of its answer, where it is whole.
        """
        model = kind = ""
        if request is not None and self._placer.model(request.model) is not None:
            model, kind = request.model, request.request_class.name.lower()
        self._requests.labels(endpoint, model, kind, str(status or _LEFT)).inc()
        self._duration.labels(endpoint, model, kind).observe(duration_s)
        if code is not None:
            self._refusals.labels(endpoint, code).inc()
        if ttft_ms is not None:
            self._ttft.labels(model, kind).observe(ttft_ms / 1000)
        if usage is not None:
            for name, tokens in (
                ("prompt", usage.prompt_tokens),
                ("cached", usage.cached_prompt_tokens),
                ("completion", usage.completion_tokens),
            ):
                self._tokens.labels(model, kind, name).inc(tokens)

    def look(self) -> None:
        """Takes the gauges for a call that is under way, in the router's event loop; the text can be made of
        them in any thread."""
        self._gauges = list(self._router())

    def collect(self) -> Iterable[Metric]:
        """The gauges that were taken last."""
        return self._gauges

    def _router(self) -> Iterator[Metric]:
        # The call that asks is one of them, and would be there whenever anybody looks.
        calls = self._serving.under_way.count - 1
        yield _gauge("chiron_router_calls", "Calls under way, over all doors, but for this one.", calls)
        queued = GaugeMetricFamily(
            "chiron_router_queued_requests",
            "Requests that wait here for an instance.",
            labels=("model", "class"),
        )
        wait = GaugeMetricFamily(
            "chiron_router_expected_wait_seconds",
            "How long a request that came now is expected to wait here; missing: nothing serves it.",
            labels=("model", "class"),
        )
        queues = {queue.model: queue for queue in self._placer.queues()}
        for model in sorted(routed.name for routed in self._placer.models()):
            queue = queues.get(model)
            for name in (kind.name.lower() for kind in RequestClass):
                queued.add_metric((model, name), getattr(queue.waiting, name) if queue is not None else 0)
                if queue is not None and (told := getattr(queue, name)).HasField("mean_ms"):
                    wait.add_metric((model, name), told.mean_ms / 1000)
        yield from (queued, wait)
        yield from self._counts()
        yield self._instances()
        connections, refused = self.connections()
        yield _gauge("chiron_http_connections", "Open connections.", connections)
        ended = CounterMetricFamily(
            "chiron_http_refused_connections",
            "Connections that were ended for what came on them, before it was a request.",
            labels=("code",),
        )
        for code, count in sorted(refused.items()):
            ended.add_metric((code,), count)
        yield ended
        yield _gauge("chiron_router_turned_away_calls", "Since the start.", self._placer.door.turned_away)

    def _counts(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "chiron_router_requests",
            "Requests of all doors and of batches by what became of them here; those that go to a worker "
            "themselves finish when it tells.",
            labels=("model", "class", "outcome"),
        )
        slo = CounterMetricFamily(
            "chiron_router_ttft_slo",
            "First tokens of proxied interactive requests that had a TTFT SLO.",
            labels=("model", "outcome"),
        )
        for (model, what, kind), count in sorted(self._placer.demand.totals().items()):
            if what.startswith("ttft_"):
                slo.add_metric((model, what.removeprefix("ttft_")), count)
            else:
                requests.add_metric((model, kind, what), count)
        yield from (requests, slo)

    def _instances(self) -> Metric:
        counts: dict[tuple[str, str], int] = {}
        for one in self._placer.instances():
            state = types_pb2.InstanceState.Name(one.state).removeprefix("INSTANCE_STATE_").lower()
            state = "ejected" if one.HasField("ejected") else state
            counts[one.model, state] = counts.get((one.model, state), 0) + 1
        family = GaugeMetricFamily(
            "chiron_router_instances",
            "Instances as this router sees them; `unspecified`: nothing is heard of them.",
            labels=("model", "state"),
        )
        for labels, count in sorted(counts.items()):
            family.add_metric(labels, count)
        return family


def _gauge(name: str, what: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, what)
    family.add_metric((), value)
    return family
