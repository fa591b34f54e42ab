"""Batches: work that may take until a deadline, kept by the routers until it is done."""
