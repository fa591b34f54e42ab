"""`chiron demo`: a local cluster under load, with a worker, the leader and an agent killed half-way."""
