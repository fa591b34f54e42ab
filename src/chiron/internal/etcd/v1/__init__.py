"""Generated types of the part of etcd's API that the store speaks; see proto/chiron/internal/etcd/v1."""
