"""The global controller: what should run where, and the record of why."""
