"""Batches at the router: BatchService over the durable queue."""
