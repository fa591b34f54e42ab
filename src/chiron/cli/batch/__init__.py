"""`chiron batch`: hands in files, watches batches, fetches results."""
