"""`/v1/files`: what batches are made from, and what comes of them."""
