"""Small models for tests and demos."""
