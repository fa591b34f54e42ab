"""What moving a running request from one simulated instance to another costs."""

from __future__ import annotations

from dataclasses import dataclass

from chiron.sim.queue_settings import InvalidSettingError

_LARGEST = 1e12
"""As of any other setting."""


@dataclass(frozen=True, slots=True)
class MigrationSettings:
    """Live migration in stages: Sun et al., OSDI 2024, section 4.2. InvalidSettingError names a bad field.

    The KV cache is copied while the request goes on; then what has come meanwhile, and so on. When little is
    left the request stops, the rest is copied, and the destination goes on.
    """

    network_bytes_per_s: float = 8e9
    """At which a node sends KV cache, and receives it: 64 Gb/s, as the nodes of the paper's testbed."""
    handover_s: float = 0.02
    """For which a request stops beside the copying of the rest: the paper's figure 10 has 20 to 30 ms in all,
    whatever the length."""
    last_stage_blocks: int = 16
    """KV blocks that may be left when the request stops: default of the published code."""
    max_stages: int = 3
    """Stages with the last; one that would need more is given up: default of the published code."""
    resume_s: float = 0.02
    """Of a stream that is handed over and not migrated: from its last token at one instance until the router
    places it anew. Assumed: two messages; the prefill comes on top."""

    def __post_init__(self) -> None:
        if not 0 < self.network_bytes_per_s <= _LARGEST:
            raise InvalidSettingError(
                "network_bytes_per_s",
                f"must be positive and at most {_LARGEST:g}, got {self.network_bytes_per_s}",
            )
        if not 0 <= self.handover_s <= _LARGEST:
            raise InvalidSettingError(
                "handover_s", f"must be at least 0 and at most {_LARGEST:g}, got {self.handover_s}"
            )
        if not 0 <= self.resume_s <= _LARGEST:
            raise InvalidSettingError(
                "resume_s", f"must be at least 0 and at most {_LARGEST:g}, got {self.resume_s}"
            )
        if self.last_stage_blocks < 0:
            raise InvalidSettingError(
                "last_stage_blocks", f"must not be negative, got {self.last_stage_blocks}"
            )
        if self.max_stages < 1:
            raise InvalidSettingError("max_stages", f"must be at least 1, got {self.max_stages}")
