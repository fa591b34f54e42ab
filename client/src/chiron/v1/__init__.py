"""Generated stubs of the public API; see proto/chiron/v1."""
