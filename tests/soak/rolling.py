"""Changes models while faults go on, as an operator would who watches what becomes of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from chiron.cluster.admin import AdminError, ClusterAdmin
from chiron.v1 import cluster_pb2 as pb
from tests.soak.cluster import SoakCluster
from tests.soak.until import until

ROLLED_S = 120.0
"""Time within which a roll is over, with all that may go wrong meanwhile."""
_ACT_S = 60.0
_CALL_S = 10.0
_LOOK_S = 1.0
_BROKEN = "no_such_argument"
"""The sim engine does not load with an argument that it does not know."""

T = TypeVar("T")


class Roller:
    """Applies versions; each call returns whether the model came to rest in time."""

    def __init__(self, cluster: SoakCluster, log: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._log = log
        self._good: dict[str, tuple[int, int]] = {}
        """Of each model: the controller's number of the version that it last came to rest at, and ours."""

    async def roll(self, model: str) -> bool:
        """Rolls a new version out; one that stalls, because its instances were struck, is rolled back."""
        version = self._cluster.versions.make(model)
        return await self._change(model, self._cluster.spec(model, version), version)

    async def spoil(self, model: str) -> bool:
        """Applies a version that cannot load; the controller has to return to the one before by itself."""
        spec = self._cluster.spec(model, self._cluster.versions.newest(model))
        spec.engine_args.update({_BROKEN: True})
        return await self._change(model, spec, None)

    async def _change(self, model: str, spec: pb.ModelSpec, version: int | None) -> bool:
        """Applies the spec; `version` is our number of it, None for one that cannot serve."""
        async with ClusterAdmin(self._cluster.controllers, timeout_s=_CALL_S) as admin:
            if model not in self._good:
                status = await until(lambda: self._status(model), _ACT_S)
                if status is None:
                    return False
                self._good[model] = (status.spec_version, 0)
            before, good = self._good[model]
            applied = await self._persist(
                lambda: admin.apply_model(spec, rollback_on_failure=version is None)
            )
            if applied is None:
                return False
            target = before if version is None else applied.model.spec_version
            rests = await self._follow(admin, model, target, before)
        if rests is None:
            return False
        self._good[model] = (before, good) if version is None or rests == before else (rests, version)
        self._cluster.versions.settled(model, self._good[model][1])
        return True

    async def _follow(self, admin: ClusterAdmin, model: str, target: int, before: int) -> int | None:
        """The version at which the model comes to rest: this one, or the one before where this one stalls."""
        while True:
            state = await until(partial(self._over, model, target), ROLLED_S, every_s=_LOOK_S)
            if state != pb.ROLL_STATE_STALLED:
                return None if state is None else target
            self._log(f"{model}: version {target} stalls; back to {before}")
            target = before
            await self._persist(partial(admin.rollback_model, model, before))

    async def _over(self, model: str, number: int) -> pb.RollState.ValueType | None:
        """DONE once nothing but this version is left and it serves as wanted; STALLED; None before."""
        snapshot = await self._cluster.snapshot()
        status = _find(snapshot, model)
        if snapshot is None or status is None or status.spec_version != number:
            return None
        if status.roll.state == pb.ROLL_STATE_STALLED:
            return pb.ROLL_STATE_STALLED
        running = {one.spec_version for one in snapshot.instances if one.model == model}
        whole = status.ready_instances == status.desired_instances
        rests = status.roll.state == pb.ROLL_STATE_DONE and running == {number} and whole
        return pb.ROLL_STATE_DONE if rests else None

    async def _status(self, model: str) -> pb.ModelStatus | None:
        return _find(await self._cluster.snapshot(), model)

    async def _persist(self, act: Callable[[], Awaitable[T]]) -> T | None:
        """The act's answer, asked for until there is one; None: not in time. Each may be repeated."""

        async def once() -> T | None:
            try:
                return await act()
            except AdminError as error:
                self._log(f"an operator's call failed: {error}")
                return None

        return await until(once, _ACT_S, every_s=_LOOK_S)


def _find(snapshot: pb.ClusterSnapshot | None, model: str) -> pb.ModelStatus | None:
    models = snapshot.models if snapshot is not None else ()
    return next((status for status in models if status.spec.name == model), None)
