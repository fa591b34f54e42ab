"""GPUs in the ledger and as they are: who holds them, who computes on them, what sleepers keep of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

from services.local_agent import procfs
from services.local_agent.condition import Kept
from services.local_agent.desired import Want
from services.local_agent.ledger import Sleeper
from services.local_agent.memory import WorkerNoted
from services.local_agent.nvml import Residue
from services.local_agent.starting import Surroundings

_MIB = 2**20


def claim(instance_id: str, gpus: Sequence[int], around: Surroundings) -> str:
    """Takes all the GPUs for an instance; returns who holds some, and then none was taken."""
    held = around.gpus.claim(instance_id, gpus)
    return ", ".join(f"GPU {index} is still held by {holder}" for index, holder in held.items())


def reclaim(instance_id: str, gpus: Sequence[int], around: Surroundings) -> str:
    """As `claim`, for a sleeper: nothing wakes on a GPU that is not healthy."""
    return around.health.obstacle(gpus) or claim(instance_id, gpus, around)


def sleeper_of(want: Want, gpus: tuple[int, ...], session: int) -> Sleeper:
    """An instance's worker as the ledger lists it while it sleeps."""
    return Sleeper(gpus, session, want.sleep_residual_bytes)


def hold(want: Want, worker: WorkerNoted, around: Surroundings) -> str:
    """Claims the GPUs of a worker found awake, and lists one that sleeps; returns who holds them already."""
    if worker.asleep:
        around.gpus.doze(want.instance_id, sleeper_of(want, worker.gpus, worker.pid))
        return ""
    return claim(want.instance_id, worker.gpus, around)


async def occupied(gpus: Sequence[int], own_session: int | None, around: Surroundings) -> str:
    """Who computes on the GPUs besides those who sleep there and the instance's own worker; empty: nobody."""
    sessions = [sleeper.session for sleeper in around.gpus.sleepers(gpus).values()]
    if own_session is not None:
        sessions.append(own_session)

    def blocking() -> Mapping[int, str]:
        return around.inventory.occupants(gpus, _members(sessions))

    occupants = await asyncio.to_thread(blocking)
    return "; ".join(f"GPU {index} is not free: {why}" for index, why in occupants.items())


async def measure(want: Want, gpus: tuple[int, ...], session: int, around: Surroundings) -> tuple[Kept, str]:
    """What a sleeper keeps, and why nobody else can have its GPUs yet (empty: they can).

    Where no figure tells sleepers apart, what is used of a GPU must not be more than all of them may keep.
    """
    one = sleeper_of(want, gpus, session)
    sleepers = around.gpus.sleepers(gpus)
    others = [other for key, other in sleepers.items() if key != want.instance_id]

    def blocking() -> tuple[Mapping[int, Residue], int]:
        return around.inventory.kept(gpus, _members([session])), procfs.resident_bytes(session)

    residues, host_bytes = await asyncio.to_thread(blocking)
    complaints = []
    for index, residue in residues.items():
        sharing = [other for other in others if index in other.gpus] if residue.others_too else []
        most = one.residual_bytes + sum(other.residual_bytes for other in sharing)
        if residue.problem:
            complaints.append(f"GPU {index}: {residue.problem}")
        elif residue.used_bytes > most:
            used = f"{residue.used_bytes // _MIB} MiB of GPU {index} are in use"
            complaints.append(f"{used}, {most // _MIB} MiB may be (autoscaling.sleep_residual_mib)")
    kept = Kept(max((residue.used_bytes for residue in residues.values()), default=0), host_bytes)
    return kept, "; ".join(complaints)


def _members(sessions: Iterable[int]) -> set[int]:
    return {member.pid for session in sessions for member in procfs.session_members(session)}
