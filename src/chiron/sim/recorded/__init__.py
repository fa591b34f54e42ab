"""What a live cluster has served, simulated again: its requests, its shape, and both beside each other."""
