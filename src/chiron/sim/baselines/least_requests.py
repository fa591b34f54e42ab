"""`least-requests`: a request goes where the fewest are, of any class.

What load balancers before replicas do that know no classes: Envoy's LEAST_REQUEST, Ray Serve's and Dynamo's
least-loaded routing. They compare two replicas drawn at random, or the counts of one proxy; here all replicas
are compared with what the router sees of them, which balances better.
"""

from __future__ import annotations

from collections.abc import Sequence

from chiron.policy.dispatch import Decision, DispatchRequest, InstanceView, Refusal, RefusalKind
from chiron.policy.words import RequestClass, Role


class LeastRequestsDispatcher:
    """See `Dispatcher`."""

    def pick(self, request: DispatchRequest, instances: Sequence[InstanceView]) -> Decision | Refusal:
        """The instance with the fewest requests that run or wait over its batch size; ties by id."""
        if not instances:
            return Refusal(RefusalKind.NO_INSTANCE, RefusalKind.NO_INSTANCE.value)
        kind = RefusalKind.EXCLUDED
        wrong = Role.BATCH if request.request_class is RequestClass.INTERACTIVE else Role.INTERACTIVE
        scores: dict[str, float] = {}
        best: tuple[float, str] | None = None
        for view in instances:
            if view.instance_id in request.excluded:
                continue
            if view.role is wrong:
                kind = kind if kind is RefusalKind.FULL else RefusalKind.NO_ROLE
                continue
            there = view.running + view.waiting_interactive + view.waiting_batch + view.reserved
            if there >= view.batch_size + view.queue_allowance:
                kind = RefusalKind.FULL
                continue
            key = (there / view.batch_size, view.instance_id)
            best = key if best is None or key < best else best
            scores[view.instance_id] = max(0, there + 1 - view.batch_size) * view.service_s / view.batch_size
        if best is None:
            return Refusal(kind, kind.value)
        return Decision(best[1], f"fewest requests: {best[0]:.2f} of its slots", scores)
