"""The local agent: starts and supervises the workers of one node for the global controller."""
