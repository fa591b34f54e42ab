"""Finding the controller that leads: for everything that dials one."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Sequence

import grpc

from chiron.rpc.errors import Reason, metadata_of, reason_of
from chiron.rpc.servers import HOST_PORT, open_control_channel

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 2.0
_SEPARATOR = re.compile(r"\s*,\s*")


def check_addresses(key: str, addresses: Sequence[str]) -> None:
    """Raises ValueError("key: what is wrong") unless each is host:port, and there is one."""
    if not addresses:
        raise ValueError(f"{key}: at least one host:port is needed")
    for address in addresses:
        parts = HOST_PORT.fullmatch(address)
        if parts is None or not 0 < int(parts[1]) < 65_536:
            raise ValueError(f"{key}: expected host:port, not {address!r}")


def split_addresses(text: str) -> tuple[str, ...]:
    """From `host:port,host:port`; what is empty is left out."""
    return tuple(part for part in _SEPARATOR.split(text.strip()) if part)


def leader_of(error: BaseException) -> str | None:
    """Where a failed call says that the leader is; empty where nobody knows; None for another failure."""
    if isinstance(error, grpc.aio.AioRpcError) and reason_of(error) == Reason.NOT_LEADER.name:
        return metadata_of(error).get("leader", "")
    return None


class Controllers:
    """Which controller to dial now; used from one event loop.

    A round tries every address once: where a NOT_LEADER answer points to first, else the next of the list.
    Between rounds there is a pause, which doubles, so that nobody calls in a hot loop while none leads.
    A caller that had found the leader waits for up to `spread_s` before it looks for the next one: many that
    lose it at once do not all come at once.

    ```python
    while True:
        try:
            await session(controllers.channel())  # calls controllers.found() once it is answered
        except Exception as error:
            controllers.failed(error)
        await controllers.pause()
    ```
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        rng: random.Random | None = None,
        spread_s: float = 2.0,
        open_channel: Callable[[str], grpc.aio.Channel] = open_control_channel,
    ) -> None:
        """Opens no connection yet.

        Args:
            addresses: host:port of each controller.
            rng: jitter; None: a new random stream.
            spread_s: longest wait before the leader's successor is looked for, in seconds.
            open_channel: makes a channel to host:port.
        """
        self.addresses = tuple(dict.fromkeys(addresses))
        self.address = self.addresses[0]
        """Where the next call goes."""
        self._rng = rng or random.Random()
        self._spread_s = spread_s
        self._open_channel = open_channel
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._tried: set[str] = set()
        self._found = False
        self._pause_s = 0.0
        self._next_pause_s = _FIRST_PAUSE_S

    def channel(self) -> grpc.aio.Channel:
        """The channel to `address`."""
        if self.address not in self._channels:
            self._channels[self.address] = self._open_channel(self.address)
        return self._channels[self.address]

    def found(self) -> None:
        """`address` leads: it has answered as a leader does."""
        self._found = True
        self._tried.clear()
        self._next_pause_s = _FIRST_PAUSE_S

    def failed(self, error: BaseException | None = None, *, at: str = "") -> bool:
        """The call or stream to `address` has ended; decides who is next, and how soon.

        Args:
            error: how it ended.
            at: where the call went to, for callers of which several run at once: the first one that fails
                there moves on for all.

        Returns:
            True when nobody is left to try before the pause between two rounds.
        """
        if at and at != self.address:
            return False
        lost, self._found = self._found, False
        hint = leader_of(error) if error is not None else None
        self._pause_s = 0.0
        if lost:
            self._pause_s = self._rng.uniform(0.0, self._spread_s)
            # The one that was lost may be back: nothing speaks against it if it has not said so itself.
            self._tried = {self.address} if hint is not None else set()
        else:
            self._tried.add(self.address)
        untried = [one for one in self._in_turn() if one not in self._tried]
        if hint and hint not in self._tried:
            self.address = hint
            return False
        if untried:
            self.address = untried[0]
            return False
        self._tried.clear()
        self.address = self._in_turn()[0]
        self._pause_s += self._rng.uniform(0.5, 1.0) * self._next_pause_s
        self._next_pause_s = min(2 * self._next_pause_s, _LONGEST_PAUSE_S)
        return True

    def again(self) -> None:
        """The stream has ended for a reason of the caller's own; the same controller is dialled soon."""
        self._pause_s = self._rng.uniform(0.5, 1.0) * _FIRST_PAUSE_S

    async def pause(self) -> None:
        """Waits for as long as the last failure asks for."""
        pause_s, self._pause_s = self._pause_s, 0.0
        for address in self._channels.keys() - {self.address, *self.addresses}:
            # A leader of some time ago that only its successor's predecessor had named.
            await self._channels.pop(address).close()
        await asyncio.sleep(pause_s)

    async def close(self) -> None:
        """Closes every connection."""
        channels, self._channels = self._channels, {}
        await asyncio.gather(*(channel.close() for channel in channels.values()))

    def _in_turn(self) -> list[str]:
        """The addresses of the list, the one after `address` first."""
        if self.address not in self.addresses:
            return list(self.addresses)
        after = self.addresses.index(self.address) + 1
        return [*self.addresses[after:], *self.addresses[:after]]
