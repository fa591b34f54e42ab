"""Global autoscalers: how many instances of which role run.

The rules of interactive and batch backpressure are the paper's (arXiv 2501.08090, the global autoscaler);
each module says what is reconstructed.
"""

from chiron.policy.fleet.chiron import Chiron
from chiron.policy.fleet.paper import ChironPaper
from chiron.policy.fleet.protocol import GlobalAutoscaler
from chiron.policy.fleet.registry import UnknownAutoscalerError, autoscaler_names, load_autoscaler
from chiron.policy.fleet.settings import ChironSettings

__all__ = [
    "Chiron",
    "ChironPaper",
    "ChironSettings",
    "GlobalAutoscaler",
    "UnknownAutoscalerError",
    "autoscaler_names",
    "load_autoscaler",
]
