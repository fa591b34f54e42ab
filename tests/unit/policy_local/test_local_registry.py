"""Local autoscalers are made by name or from module:Class."""

from __future__ import annotations

import pytest

from chiron.policy.local import (
    ModelAutoscaler,
    ReactiveAutoscaler,
    UnknownLocalAutoscalerError,
    load_local,
)


def test_names_and_classes() -> None:
    assert isinstance(load_local(), ModelAutoscaler)
    assert isinstance(load_local("reactive"), ReactiveAutoscaler)
    assert isinstance(load_local("chiron.policy.local.model:ModelAutoscaler"), ModelAutoscaler)


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("adaptive", "known are model, reactive, or module:Class"),
        ("no.such.module:Thing", "No module named"),
        ("chiron.policy.local.model:Nothing", "has no attribute 'Nothing'"),
        ("chiron.policy.local.pairs:Pair", "Pair has no method decide"),
    ],
)
def test_an_unknown_one_is_refused_with_the_cause(name: str, cause: str) -> None:
    with pytest.raises(UnknownLocalAutoscalerError, match=cause):
        load_local(name)
