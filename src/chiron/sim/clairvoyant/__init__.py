"""`oracle-feasible`: a schedule made with the workload in hand, as a reference. No policy is given it."""
