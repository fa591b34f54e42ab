"""`chiron demo`: a local cluster under load, with a worker killed half-way."""
