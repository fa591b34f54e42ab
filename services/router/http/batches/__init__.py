"""`/v1/batches`: files of requests, worked on by the durable queue."""
