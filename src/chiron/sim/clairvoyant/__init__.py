"""`oracle-feasible`: a schedule made with the whole workload in hand, as a reference. No policy is given it."""
