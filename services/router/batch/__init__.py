"""Batches at the router: BatchService over the durable queue, and the work on it."""
