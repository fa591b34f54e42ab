"""Deterministic discrete-event simulator of a cluster, driving the engine model and the services' policies."""
