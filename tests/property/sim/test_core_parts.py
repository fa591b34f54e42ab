"""The parts that save time decide as the plain ones do."""

from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from chiron.engine import EngineModel, get_profile
from chiron.policy.dispatch import LeastExpectedWait
from chiron.policy.words import Role
from chiron.sim.baselines.least_requests import LeastRequestsDispatcher
from chiron.sim.baselines.llumnix import FreenessDispatcher
from chiron.sim.fewest import FewestPicker
from chiron.sim.freest import FreestPicker
from chiron.sim.gaps import longest_between
from chiron.sim.picking import IndexedPicker, ScanningPicker, make_picker
from chiron.sim.seen import Seen

loads = st.fixed_dictionaries(
    {
        "role": st.sampled_from(list(Role)),
        "batch": st.integers(1, 4) | st.just(80),
        "running_interactive": st.integers(0, 3),
        "running_batch": st.integers(0, 3),
        # With 80 slots, more prompts wait than an engine may have waiting, or just as many as it may.
        "waiting_interactive": st.integers(0, 2) | st.integers(30, 33),
        "waiting_batch": st.integers(0, 2),
        "kv_free_tokens": st.sampled_from([0, 50, 500]),
        "itl_s": st.sampled_from([0.01, 0.02]),
        "service_s": st.sampled_from([1.0, 3.0]),
        "reserved": st.integers(0, 2),
        "accepts": st.booleans(),
    }
)
shared = st.dictionaries(st.sampled_from([f"i-{number}" for number in range(5)]), st.integers(1, 200))
changes = st.lists(st.tuples(st.integers(0, 4), loads), min_size=1, max_size=30)


def seen_of(number):
    instance = SimpleNamespace(
        identity=SimpleNamespace(instance_id=f"i-{number}"),
        engine=EngineModel(get_profile("toy"), batch_size=1),
        role=Role.MIXED,
        running_interactive=0,
        running_batch=0,
        waiting_interactive=0,
        waiting_batch=0,
        kv_free_tokens=0,
        itl_s=0.0,
        service_s=1.0,
    )
    return Seen(instance)


@given(
    st.sampled_from(
        [
            (LeastExpectedWait, IndexedPicker),
            (LeastRequestsDispatcher, FewestPicker),
            (FreenessDispatcher, FreestPicker),
        ]
    ),
    changes,
    st.sampled_from([0, 2]),
    st.sampled_from([1, 100]),
    st.just({}) | shared,
)
def test_the_index_picks_what_the_dispatcher_picks(kinds, changes, allowance, prompt_tokens, cached):
    dispatcher, picker = kinds
    index = make_picker(dispatcher(), allowance)
    assert type(index) is picker
    scan = ScanningPicker(dispatcher(), allowance)
    instances = [seen_of(number) for number in range(5)]
    for number, load in changes:
        seen = instances[number]
        seen.instance.engine.set_batch_size(load["batch"])
        for name in load.keys() - {"batch", "reserved", "accepts"}:
            setattr(seen.instance, name, load[name])
        seen.refresh()
        seen.reserved, seen.accepts = load["reserved"], load["accepts"]
        index.changed(seen)
        scan.changed(seen)
        for yielding in (False, True):
            expected = scan.pick_interactive(prompt_tokens, yielding, cached)
            assert index.pick_interactive(prompt_tokens, yielding, cached) == expected
        assert index.pick_batch(prompt_tokens, cached) == scan.pick_batch(prompt_tokens, cached)


@given(st.lists(st.floats(0.001, 1.0), max_size=40), st.data())
def test_the_longest_of_the_steps_between_two_moments(durations, data):
    bounds = st.tuples(*[st.integers(0, len(durations))] * 2)
    pairs = data.draw(st.lists(bounds, max_size=20))
    first, last = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    found = longest_between(np.array(durations), first, last)
    assert found.tolist() == [max(durations[begin:end], default=0.0) for begin, end in pairs]
