"""Profiles: what a model on given GPUs costs per step, holds in KV cache, and takes to load and wake."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from chiron.engine.errors import InvalidLimitError, UnknownProfileError
from chiron.engine.measurements import LLAMA3_8B_A100_MS, LLAMA3_70B_4XA100_MS, StepTimePoints
from chiron.engine.speculation import Speculation
from chiron.engine.step_time import check_points


@dataclass(frozen=True, slots=True)
class Profile:
    """One model on one kind of instance. Raises InvalidLimitError naming the field that is out of range."""

    name: str
    """Registry key, `model@gpus`."""
    gpus: int
    """GPUs per instance."""
    step_time_ms: StepTimePoints
    """Measured (tokens in the step, milliseconds), attention excluded; linear between the points."""
    kv_bytes_per_token: int
    """Bytes of keys and values that one token occupies, over all GPUs."""
    kv_read_bytes_per_s: float
    """Memory bandwidth of one GPU, bytes a second; decode attention reads at gpus times this."""
    kv_capacity_tokens: int
    """Tokens that the KV cache holds; rounded down to whole blocks."""
    block_size: int
    """Tokens per KV block."""
    max_context_tokens: int
    """Longest prompt and output together, in tokens."""
    default_step_token_budget: int
    """Tokens per step when the caller names no budget."""
    load_s: float
    """Seconds from process start until the engine is ready."""
    wake_s: tuple[float, float]
    """Seconds to wake from sleep level 1 (weights in host memory) and level 2 (weights dropped)."""
    speculation: Speculation | None = None
    """Speculative decoding; None: one token per request and decode step."""

    def __post_init__(self) -> None:
        if not self.name:
            raise InvalidLimitError("name", "must not be empty")
        for field in (
            "gpus",
            "kv_bytes_per_token",
            "kv_read_bytes_per_s",
            "block_size",
            "max_context_tokens",
            "default_step_token_budget",
        ):
            if getattr(self, field) <= 0:
                raise InvalidLimitError(field, f"must be positive, got {getattr(self, field)}")
        if self.kv_capacity_tokens < self.block_size:
            raise InvalidLimitError(
                "kv_capacity_tokens",
                f"must hold at least one block of {self.block_size} tokens, got {self.kv_capacity_tokens}",
            )
        if self.load_s < 0:
            raise InvalidLimitError("load_s", f"must not be negative, got {self.load_s}")
        if len(self.wake_s) != 2 or min(self.wake_s) < 0:
            raise InvalidLimitError("wake_s", f"must be two times, neither negative, got {self.wake_s}")
        check_points(self.step_time_ms)

    @property
    def kv_blocks(self) -> int:
        """Whole blocks in the KV cache."""
        return self.kv_capacity_tokens // self.block_size

    @property
    def kv_read_s_per_token(self) -> float:
        """Seconds that decode attention takes to read one token's keys and values."""
        return self.kv_bytes_per_token / (self.kv_read_bytes_per_s * self.gpus)

    def replace(self, **overrides: Any) -> "Profile":
        """Return a copy with these fields changed; InvalidLimitError names a field that does not exist."""
        known = {field.name for field in dataclasses.fields(self)}
        for field in overrides:
            if field not in known:
                raise InvalidLimitError(field, f"is no field of a profile; known: {', '.join(sorted(known))}")
        return dataclasses.replace(self, **overrides)


# Load and wake times are assumptions: the paper gives 15 to 60 s for loading; waking copies the weights
# from host memory at roughly 20 GB/s a GPU (level 1) or reads them again (level 2).
LLAMA3_8B_A100 = Profile(
    name="llama3-8b@a100",
    gpus=1,
    step_time_ms=LLAMA3_8B_A100_MS,
    kv_bytes_per_token=131_072,
    kv_read_bytes_per_s=1.6e12,
    kv_capacity_tokens=430_000,
    block_size=16,
    max_context_tokens=8192,
    default_step_token_budget=2048,
    load_s=20.0,
    wake_s=(1.0, 8.0),
)

LLAMA3_70B_4XA100 = Profile(
    name="llama3-70b@4xa100",
    gpus=4,
    step_time_ms=LLAMA3_70B_4XA100_MS,
    kv_bytes_per_token=327_680,
    kv_read_bytes_per_s=1.6e12,
    kv_capacity_tokens=500_000,
    block_size=16,
    max_context_tokens=8192,
    default_step_token_budget=2048,
    load_s=45.0,
    wake_s=(2.5, 20.0),
)

TOY = Profile(
    name="toy",
    gpus=1,
    step_time_ms=((1, 2.01), (1001, 12.01)),
    kv_bytes_per_token=4096,
    kv_read_bytes_per_s=1.0e12,
    kv_capacity_tokens=65_536,
    block_size=16,
    max_context_tokens=4096,
    default_step_token_budget=2048,
    load_s=0.3,
    wake_s=(0.05, 0.15),
)
"""Invented figures for tests and demonstrations: 2 ms a step and 0.01 ms a token."""

DEMO = TOY.replace(
    name="demo",
    step_time_ms=((1, 60.0), (1001, 660.0)),
    kv_read_bytes_per_s=2.56e8,
    kv_capacity_tokens=16_384,
    default_step_token_budget=256,
    load_s=2.0,
)
"""Invented figures for a demonstration at human speed: 60 ms a step, 0.6 ms a token and 16 µs a cached token.
A full batch of 24 decodes in about 100 ms, and many such engines fit on two cores."""

_PROFILES = {profile.name: profile for profile in (LLAMA3_8B_A100, LLAMA3_70B_4XA100, TOY, DEMO)}


def profile_names() -> tuple[str, ...]:
    """Names of the registered profiles, sorted."""
    return tuple(sorted(_PROFILES))


def get_profile(name: str) -> Profile:
    """Return the profile of this name; UnknownProfileError lists the known names."""
    try:
        return _PROFILES[name]
    except KeyError:
        raise UnknownProfileError(name, profile_names()) from None
