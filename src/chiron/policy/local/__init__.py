"""Local autoscalers: one instance's batch size and step-token budget from its own samples."""
