"""Generated stubs of the APIs between services; see proto/chiron/internal/v1."""
