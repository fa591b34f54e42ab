"""The batch queue that several routers share, in PostgreSQL: row locks and the database's clock."""

from chiron.batch.postgres.queue import PostgresBatchQueue

__all__ = ["PostgresBatchQueue"]
