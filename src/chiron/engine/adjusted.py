"""A profile with what the arguments of an engine change."""

from __future__ import annotations

from chiron.engine.profiles import Profile, get_profile
from chiron.engine.speculation import Speculation


def adjusted_profile(
    name: str,
    *,
    time_scale: float = 1.0,
    load_time_s: float = -1.0,
    kv_capacity_tokens: int = 0,
    max_context_tokens: int = 0,
    draft_tokens: int = 0,
    acceptance_rate: float = 0.7,
) -> Profile:
    """The profile of this name, changed; defaults leave its own values.

    Args:
        name: of a profile.
        time_scale: factor on its load and wake times; that on step times is the driver's.
        load_time_s: seconds to load, before `time_scale`; below 0: the profile's.
        kv_capacity_tokens: 0: the profile's.
        max_context_tokens: 0: the profile's.
        draft_tokens: of speculative decoding; 0: as the profile has it.
        acceptance_rate: chance that a drafted token is accepted.

    Raises:
        UnknownProfileError: there is none of this name.
        InvalidLimitError: a value is out of range.
    """
    profile = get_profile(name)
    load_s = profile.load_s if load_time_s < 0 else load_time_s
    return profile.replace(
        load_s=load_s * time_scale,
        wake_s=tuple(seconds * time_scale for seconds in profile.wake_s),
        kv_capacity_tokens=kv_capacity_tokens or profile.kv_capacity_tokens,
        max_context_tokens=max_context_tokens or profile.max_context_tokens,
        speculation=Speculation(draft_tokens, acceptance_rate) if draft_tokens else profile.speculation,
    )
