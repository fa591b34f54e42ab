"""Baselines: other systems' policies behind the same protocols as Chiron's own."""
