"""The parts of etcd's transactions, in short."""

from __future__ import annotations

from chiron.internal.etcd.v1 import etcd_pb2 as pb


def range_of(key: bytes, *, keys_only: bool = False) -> pb.RequestOp:
    """Reads one key."""
    return pb.RequestOp(request_range=pb.RangeRequest(key=key, keys_only=keys_only))


def put(key: bytes, value: bytes) -> pb.RequestOp:
    """Writes one key."""
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value))


def delete(key: bytes, range_end: bytes = b"") -> pb.RequestOp:
    """Deletes one key, or those from `key` up to before `range_end`."""
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key, range_end=range_end))


def mod_is(key: bytes, revision: int) -> pb.Compare:
    """The key was last written at this etcd revision; 0: it does not exist."""
    return pb.Compare(
        result=pb.COMPARE_RESULT_EQUAL, target=pb.COMPARE_TARGET_MOD, key=key, mod_revision=revision
    )


def created_at(key: bytes, revision: int) -> pb.Compare:
    """The key was created at this etcd revision, and exists since."""
    return pb.Compare(
        result=pb.COMPARE_RESULT_EQUAL, target=pb.COMPARE_TARGET_CREATE, key=key, create_revision=revision
    )
