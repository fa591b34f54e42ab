"""The durable batch queue: one contract, its stores."""
