"""Decisions explained: what they rest on, what they follow from, and what came of them."""
