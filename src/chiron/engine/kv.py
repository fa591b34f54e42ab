"""The KV cache: a count of private blocks and, by hash, the blocks that hold shared prompt prefixes."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence


class BlockPool:
    """Blocks of one engine; total == free + idle cached + cached in use + private.

    Private blocks are interchangeable, so they are only counted. A cached block is named by its chained
    hash and counted by its users; unused ones stay until their space is needed, and the least recently used
    goes first.
    """

    __slots__ = ("_evicted", "_idle", "_users", "available", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        # Blocks that can be taken now: free ones and cached ones that nobody uses.
        self.available = total
        self._evicted: list[Hashable] | None = None
        self._users: dict[Hashable, int] = {}
        self._idle: OrderedDict[Hashable, None] = OrderedDict()

    @property
    def cached(self) -> int:
        """Blocks in the prefix cache, used or not."""
        return len(self._users)

    @property
    def caching(self) -> bool:
        """Whether the prefix cache holds any block."""
        return bool(self._users)

    @property
    def idle(self) -> int:
        """Blocks in the prefix cache that nobody uses."""
        return len(self._idle)

    def take(self, blocks: int) -> None:
        """Take private blocks, evicting idle cached ones; ValueError when fewer are available."""
        available = self.available - blocks
        if available < 0:
            raise ValueError(f"{blocks} KV blocks asked for, {self.available} available")
        self.available = available
        if self._idle:
            while len(self._idle) > available:
                evicted, _ = self._idle.popitem(last=False)
                del self._users[evicted]
                if self._evicted is not None:
                    self._evicted.append(evicted)

    def give_back(self, blocks: int) -> None:
        """Return private blocks."""
        self.available += blocks

    def match(self, hashes: Sequence[Hashable], limit: int) -> tuple[int, int]:
        """Return how many leading hashes, at most limit, are cached, and how many of those are idle."""
        users = self._users
        hits = idle = 0
        for block_hash in hashes[:limit]:
            count = users.get(block_hash)
            if count is None:
                break
            hits += 1
            idle += not count
        return hits, idle

    def acquire(self, hashes: Sequence[Hashable]) -> None:
        """Use these cached blocks once more."""
        for block_hash in hashes:
            count = self._users[block_hash]
            if not count:
                del self._idle[block_hash]
                self.available -= 1
            self._users[block_hash] = count + 1

    def publish(self, block_hash: Hashable) -> bool:
        """Turn a private block into a cached one with one user; False when it is cached already."""
        if block_hash in self._users:
            return False
        self._users[block_hash] = 1
        return True

    def release(self, hashes: Sequence[Hashable]) -> None:
        """Stop using these blocks, given in prompt order; a prefix is evicted from its end."""
        for block_hash in reversed(hashes):
            count = self._users[block_hash] - 1
            self._users[block_hash] = count
            if not count:
                self._idle[block_hash] = None
                self.available += 1

    def follow(self) -> None:
        """From now on evicted() tells what leaves the cache; it must be called now and then."""
        if self._evicted is None:
            self._evicted = []

    def evicted(self) -> Sequence[Hashable]:
        """Return the hashes that have left the cache since the last call; none unless followed."""
        evicted = self._evicted
        if not evicted:
            return ()
        self._evicted = []
        return evicted

    def forget_idle(self) -> None:
        """Empty the prefix cache of all that nobody uses."""
        for block_hash in self._idle:
            del self._users[block_hash]
        if self._evicted is not None:
            self._evicted.extend(self._idle)
        self._idle.clear()
