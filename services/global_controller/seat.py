"""Who leads, as this process knows it, and what those are told who ask another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from chiron.rpc.errors import ChironError, Reason
from services.global_controller.pulse import Pulse
from services.global_controller.store_health import StoreHealth, StoreState

if TYPE_CHECKING:
    from services.global_controller.controller import Controller


class Seat:
    """At most one controller of this process leads; its servicers ask here for it."""

    def __init__(self, address: str, health: StoreHealth) -> None:
        """Nobody leads yet.

        Args:
            address: host:port at which this process is reached.
            health: the store's.
        """
        self.address = address
        self.health = health
        self.candidates: Sequence[str] = (address,)
        """Addresses of all controllers, in the order in which they lead; the last known."""
        self.changed = Pulse()
        """Beats when this process begins or ceases to lead, or others come and go."""
        self._controller: Controller | None = None

    def settle(self, address: str) -> None:
        """Where this process is reached is known only now; until others are heard of, it stands alone."""
        self.address = address
        self.candidates = (address,)

    def take(self, controller: Controller) -> None:
        """This process leads."""
        self._controller = controller
        self.changed.beat()

    def leave(self) -> None:
        """It leads no more."""
        self._controller = None
        self.changed.beat()

    def stand(self, candidates: Sequence[str]) -> None:
        """Those who lead and would lead, in that order."""
        self.candidates = candidates
        self.changed.beat()

    @property
    def controller(self) -> Controller | None:
        """The one that leads, where it is in this process."""
        return self._controller

    def leading(self) -> Controller:
        """The one that leads. Raises ChironError with NOT_LEADER when that is not in this process."""
        if self._controller is None:
            raise self.refusal()
        return self._controller

    def refusal(self) -> ChironError:
        """NOT_LEADER, with what is known about who does."""
        leader = self.candidates[0] if self.candidates else ""
        if leader == self.address:
            # It is about to lead, or has just ceased to.
            leader = ""
        text = f"this controller does not lead; {leader} does" if leader else "no controller leads at present"
        if self.health.state in (StoreState.READ_ONLY, StoreState.UNAVAILABLE):
            health = self.health
            text += f"; the store is {health.state.value} for {health.age_s:.0f} s: {health.reason}"
        metadata = {
            "leader": leader,
            "store": self.health.state.value,
            "store_kind": self.health.kind,
            "store_reason": self.health.reason,
            "store_age_s": f"{self.health.age_s:.1f}",
        }
        return ChironError(Reason.NOT_LEADER, text, metadata=metadata)
