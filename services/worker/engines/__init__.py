"""Engines that a worker can host, and the interface they implement."""
