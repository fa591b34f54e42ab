"""Decisions: pure functions of a snapshot, with time and randomness passed in. No I/O."""
