"""What `chiron sim plan` answers: how many GPUs a workload needs, of which type, and with which knobs."""
