"""Deterministic discrete-event simulator of a cluster: the services' policies on the engine model."""
