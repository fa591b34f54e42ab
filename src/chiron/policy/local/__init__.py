"""Local autoscalers: one instance's batch size and step-token budget from its own samples."""

from chiron.policy.local.base import LocalAutoscaler, SampleError
from chiron.policy.local.model import ModelAutoscaler
from chiron.policy.local.reactive import ReactiveAutoscaler, ReactiveGains
from chiron.policy.local.registry import DEFAULT, UnknownLocalAutoscalerError, load_local

__all__ = [
    "DEFAULT",
    "LocalAutoscaler",
    "ModelAutoscaler",
    "ReactiveAutoscaler",
    "ReactiveGains",
    "SampleError",
    "UnknownLocalAutoscalerError",
    "load_local",
]
