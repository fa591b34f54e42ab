"""What is known of the controllers while none of them leads: which answer, and what they say of the store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc

from chiron.rpc.controllers import leader_of
from chiron.rpc.errors import metadata_of
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import cluster_pb2_grpc

_WITHIN_S = 2.0


@dataclass(frozen=True, slots=True)
class Standing:
    """One controller, as it answers now."""

    address: str
    answers: bool
    reason: str = ""
    """Why it does not answer."""
    store_kind: str = ""
    store_state: str = ""
    """ok, degraded, read-only or unavailable, as this controller sees it."""
    store_reason: str = ""
    store_age_s: float = 0.0
    """For how long it has been so."""


async def ask_each(
    addresses: Sequence[str], open_channel: Callable[[str], grpc.aio.Channel]
) -> list[Standing]:
    """Asks every controller at once, by a call that one that leads would carry out."""
    return list(await asyncio.gather(*(_ask(address, open_channel) for address in addresses)))


def store_of(standings: Sequence[Standing]) -> Standing | None:
    """Whoever has known for longest that something is wrong with the store, else anybody who knows it."""
    said = [one for one in standings if one.store_state]
    troubled = [one for one in said if one.store_state != "ok"]
    return max(troubled, key=lambda one: one.store_age_s) if troubled else next(iter(said), None)


async def _ask(address: str, open_channel: Callable[[str], grpc.aio.Channel]) -> Standing:
    async with open_channel(address) as channel:
        stub = cluster_pb2_grpc.ClusterServiceStub(channel)
        try:
            await stub.GetSnapshot(pb.GetSnapshotRequest(), timeout=_WITHIN_S)
        except grpc.aio.AioRpcError as error:
            if leader_of(error) is not None:
                told = metadata_of(error)
                return Standing(
                    address,
                    answers=True,
                    store_kind=told.get("store_kind", ""),
                    store_state=told.get("store", ""),
                    store_reason=told.get("store_reason", ""),
                    store_age_s=float(told.get("store_age_s", "0")),
                )
            late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            text = f"no answer within {_WITHIN_S:g} s" if late else error.details() or error.code().name
            return Standing(address, answers=False, reason=" ".join(text.split()))
    return Standing(address, answers=True)
