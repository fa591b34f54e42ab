"""The texts of what a router refuses."""

from __future__ import annotations

import math
from collections.abc import Iterable

from chiron.internal.v1 import control_pb2
from chiron.policy.admission import AdmissionRefusal
from chiron.requests.tools import no_parser
from chiron.rpc.errors import ChironError, Reason
from services.router.waits import Wait

_MIN_RETRY_S, _MAX_RETRY_S = 0.1, 30.0


def unknown_model(name: str, known: Iterable[str] | None) -> ChironError:
    """NOT_FOUND that names the models there are; None: they are nobody's business."""
    if known is None:
        return ChironError(Reason.MODEL_NOT_FOUND, f"unknown model {name!r}: it is not applied")
    names = ", ".join(sorted(known))
    there = f"models are {names}" if names else "no model is applied"
    return ChironError(Reason.MODEL_NOT_FOUND, f"unknown model {name!r}: {there}")


def unknown_adapter(model: control_pb2.RoutedModel, adapter: str) -> ChironError:
    """NOT_FOUND that names the model's adapters."""
    names = ", ".join(sorted(model.adapters))
    there = f"it has {names}" if names else "it has none"
    return ChironError(Reason.ADAPTER_NOT_FOUND, f"model {model.name!r} has no adapter {adapter!r}: {there}")


def no_tool_parser(model: control_pb2.RoutedModel) -> ChironError:
    """INVALID_ARGUMENT on the tools."""
    return ChironError.invalid([no_parser(model.name)])


def failed_model(model: control_pb2.RoutedModel) -> ChironError:
    """UNAVAILABLE with the controller's reason."""
    reason = model.reason or "no instance is ready or on its way"
    return ChironError(Reason.NO_INSTANCE, f"model {model.name!r} cannot serve: {reason}")


def other_weights(model: control_pb2.RoutedModel, spec_version: int) -> ChironError:
    """ABORTED: a stream goes on at the weights that it began on, or not at all."""
    return ChironError(
        Reason.CANNOT_RESUME,
        f"the stream broke and cannot be resumed: it began on spec version {spec_version} of model "
        f"{model.name!r}, and no instance serves those weights any more (now version {model.spec_version})",
    )


def queue_full(model: str, waiting: int, wait_s: float, wait: Wait) -> ChironError:
    """RESOURCE_EXHAUSTED with the time after which a place is likely, and the wait that was expected."""
    return ChironError(
        Reason.QUEUE_FULL,
        f"every instance of {model!r} is full and {waiting} requests wait already",
        retry_after_s=min(max(wait_s, _MIN_RETRY_S), _MAX_RETRY_S),
        metadata=_numbers(wait),
    )


def out_of_reach(model: str, refusal: AdmissionRefusal, wait: Wait, budget_s: float) -> ChironError:
    """RESOURCE_EXHAUSTED for who has asked not to wait in vain, with the estimate that says so."""
    estimate = wait.estimate
    text = (
        f"the SLO is out of reach: a request for {model!r} would wait {estimate.mean_s:.1f} s, "
        f"{estimate.quantile_s:.1f} s at {100 * estimate.quantile:g} %, behind {wait.ahead} others at "
        f"{wait.tokens_per_s:.0f} tokens/s; it may wait {max(0.0, budget_s):.1f} s"
    )
    return ChironError(
        Reason.SLO_OUT_OF_REACH,
        text,
        retry_after_s=refusal.retry_after_s,
        metadata={**_numbers(wait), "budget_s": f"{budget_s:.3f}"},
    )


def _numbers(wait: Wait) -> dict[str, str]:
    """The estimate as metadata; empty where nothing serves the queue, so that nothing is known."""
    estimate = wait.estimate
    if not estimate.mean_s < math.inf:
        return {}
    return {
        "wait_mean_s": f"{estimate.mean_s:.3f}",
        "wait_quantile_s": f"{estimate.quantile_s:.3f}",
        "wait_quantile": f"{estimate.quantile:g}",
        "requests_ahead": str(wait.ahead),
        "tokens_per_s": f"{wait.tokens_per_s:.1f}",
    }


def waited_for_slot(model: str, waited_s: float) -> ChironError:
    """RESOURCE_EXHAUSTED after the longest wait that the router allows."""
    return ChironError(
        Reason.QUEUE_FULL,
        f"no slot of {model!r} came free in {waited_s:g} s",
        retry_after_s=_MAX_RETRY_S,
    )


def waited_for_instance(routed: control_pb2.RoutedModel | None, model: str, waited_s: float) -> ChironError:
    """UNAVAILABLE after the longest wait, when no instance ever came up."""
    reason = f": {routed.reason}" if routed is not None and routed.reason else ""
    return ChironError(Reason.NO_INSTANCE, f"no instance of {model!r} became ready in {waited_s:g} s{reason}")
