"""The sim engine's arguments (ModelSpec.engine_args)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chiron.engine import InvalidLimitError, Profile, UnknownProfileError, adjusted_profile
from services.worker.engines.base import EngineLoadError

MAX_TIME_SCALE = 10.0
_MOST_TOKENS = 1_000_000_000
_EXACT = 2**53
"""Whole numbers beyond it do not survive their way through JSON."""
_BOUNDS: Mapping[str, tuple[int, int]] = {
    "load_time_s": (-1, 86_400),
    "kv_capacity_tokens": (0, _MOST_TOKENS),
    "max_context_tokens": (0, _MOST_TOKENS),
    "max_step_token_budget": (1, _MOST_TOKENS),
    "draft_tokens": (0, 1_000),
    "acceptance_rate": (0, 1),
    "seed": (-_EXACT, _EXACT),
}
"""Least and most of each number; reports hold token counts in 32 bits. time_scale has an open end."""


@dataclass(frozen=True, slots=True)
class SimSettings:
    """Arguments with their defaults; 0 leaves the profile's own value."""

    profile: str = "toy"
    """Name of a chiron.engine profile."""
    time_scale: float = 1.0
    """Factor on every duration, load and wake times included; above 0, at most 10."""
    load_time_s: float = -1.0
    """Seconds to load, before time_scale, at most a day; below 0: the profile's."""
    fail_load: str = ""
    """Loading fails with this text, for tests of failure handling."""
    kv_capacity_tokens: int = 0
    max_context_tokens: int = 0
    max_step_token_budget: int = 8192
    """Ceiling of the step-token budget, in tokens."""
    draft_tokens: int = 0
    """Speculative decoding: tokens drafted per step; 0: none."""
    acceptance_rate: float = 0.7
    """Speculative decoding: chance that a drafted token is accepted."""
    seed: int = 0
    """Changes every text that the model writes, as other weights would."""

    def timing(self) -> Profile:
        """The profile with what these settings change. Raises EngineLoadError."""
        try:
            return adjusted_profile(
                self.profile,
                time_scale=self.time_scale,
                load_time_s=self.load_time_s,
                kv_capacity_tokens=self.kv_capacity_tokens,
                max_context_tokens=self.max_context_tokens,
                draft_tokens=self.draft_tokens,
                acceptance_rate=self.acceptance_rate,
            )
        except UnknownProfileError as error:
            raise EngineLoadError(f"engine_args.profile: {error}") from error
        except InvalidLimitError as error:
            raise EngineLoadError(f"engine_args.{error}") from error


def parse_settings(arguments: Mapping[str, Any]) -> SimSettings:
    """Checks names, types and ranges. Raises EngineLoadError that names the argument."""
    known = {field.name: type(field.default) for field in dataclasses.fields(SimSettings)}
    values: dict[str, Any] = {}
    for name, value in arguments.items():
        if name not in known:
            raise EngineLoadError(
                f"engine_args.{name}: unknown; the sim engine has {', '.join(sorted(known))}"
            )
        kind = known[name]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not kind:
            raise EngineLoadError(f"engine_args.{name}: must be {kind.__name__}, not {value!r}")
        values[name] = value
    for name, (least, most) in _BOUNDS.items():
        value = values.get(name, least)
        # Written so that NaN is refused too.
        if not least <= value <= most:
            raise EngineLoadError(f"engine_args.{name}: must be {least} to {most}, not {value}")
    settings = SimSettings(**values)
    if not 0 < settings.time_scale <= MAX_TIME_SCALE:
        raise EngineLoadError(
            f"engine_args.time_scale: must be above 0 and at most {MAX_TIME_SCALE:g}, "
            f"not {settings.time_scale:g}"
        )
    return settings
