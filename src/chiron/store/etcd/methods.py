"""etcd's methods by the paths of the real server, with their types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from chiron.internal.etcd.v1 import etcd_pb2 as pb


class _Message(Protocol):
    def SerializeToString(self, *, deterministic: bool = ...) -> bytes: ...
    @classmethod
    def FromString(cls, s: bytes) -> _Message: ...


Request = TypeVar("Request", bound=_Message)
Response = TypeVar("Response", bound=_Message)


@dataclass(frozen=True, slots=True)
class Method(Generic[Request, Response]):
    """One method."""

    path: str
    request: type[Request]
    response: type[Response]


RANGE = Method("/etcdserverpb.KV/Range", pb.RangeRequest, pb.RangeResponse)
TXN = Method("/etcdserverpb.KV/Txn", pb.TxnRequest, pb.TxnResponse)
PUT = Method("/etcdserverpb.KV/Put", pb.PutRequest, pb.PutResponse)
WATCH = Method("/etcdserverpb.Watch/Watch", pb.WatchRequest, pb.WatchResponse)
LEASE_GRANT = Method("/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantRequest, pb.LeaseGrantResponse)
LEASE_REVOKE = Method("/etcdserverpb.Lease/LeaseRevoke", pb.LeaseRevokeRequest, pb.LeaseRevokeResponse)
LEASE_KEEP_ALIVE = Method(
    "/etcdserverpb.Lease/LeaseKeepAlive", pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse
)
STATUS = Method("/etcdserverpb.Maintenance/Status", pb.StatusRequest, pb.StatusResponse)
COMPACT = Method("/etcdserverpb.KV/Compact", pb.CompactionRequest, pb.CompactionResponse)
AUTHENTICATE = Method("/etcdserverpb.Auth/Authenticate", pb.AuthenticateRequest, pb.AuthenticateResponse)
CAMPAIGN = Method("/v3electionpb.Election/Campaign", pb.CampaignRequest, pb.CampaignResponse)
LEADER = Method("/v3electionpb.Election/Leader", pb.LeaderRequest, pb.LeaderResponse)
RESIGN = Method("/v3electionpb.Election/Resign", pb.ResignRequest, pb.ResignResponse)
