"""Cluster state in etcd, over etcd's own gRPC API."""

from chiron.store.etcd.commit import Limits
from chiron.store.etcd.connection import Connection
from chiron.store.etcd.leadership import Leadership
from chiron.store.etcd.lease import Lease
from chiron.store.etcd.past import RestoredError
from chiron.store.etcd.settings import EtcdSettings, TlsFiles
from chiron.store.etcd.store import EtcdStore
from chiron.store.etcd.values import SchemaError

__all__ = [
    "Connection",
    "EtcdSettings",
    "EtcdStore",
    "Leadership",
    "Lease",
    "Limits",
    "RestoredError",
    "SchemaError",
    "TlsFiles",
]
