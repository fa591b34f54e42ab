"""The batch queue of one router in a SQLite file: write-ahead log, every commit synced, commits shared."""

from chiron.batch.sqlite.clock import QueueClock
from chiron.batch.sqlite.queue import SqliteBatchQueue

__all__ = ["QueueClock", "SqliteBatchQueue"]
