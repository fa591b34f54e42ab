"""What tickets, keys and quotas cost a request.

    python -m bench.access             # bench/results/access.json
    python -m bench.access --smoke     # a few rounds, to see that it works

Microseconds of CPU per request, one process: what the router adds to a placement (a signed ticket; with
tenants the caller's key, its rights and its quota), what the worker adds to a request (signature, time,
scope, single use). The unsigned ticket is what was there before signatures. Nothing here runs per token.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time_ns

from chiron.auth.access import AccessTable
from chiron.auth.api_keys import NewKey
from chiron.auth.credentials import Credentials
from chiron.auth.keys import KeyRing
from chiron.auth.quotas import Account
from chiron.auth.tickets import sign
from chiron.internal.v1 import auth_pb2, control_pb2, worker_pb2
from chiron.policy.dispatch import Decision
from chiron.policy.words import RequestClass
from chiron.v1 import access_pb2, types_pb2
from chiron.v1 import inference_pb2 as pb
from services.router.request import PendingRequest, Placement
from services.router.reservations import Reservation
from services.router.tickets import Tickets
from services.worker.tickets import TicketDesk

_TENANTS, _KEYS = 1_000, 10_000
_REPETITIONS = 7


def measured_us(work: Callable[[int], object], rounds: int) -> float:
    """Median CPU time of one call, in microseconds."""
    found = []
    for repetition in range(_REPETITIONS):
        began = process_time_ns()
        for number in range(rounds):
            work(repetition * rounds + number)
        found.append((process_time_ns() - began) / rounds / 1e3)
    return round(median(found), 2)


def ticket_costs(rounds: int) -> dict[str, float]:
    """Issuing and checking."""
    ring = KeyRing.draw()
    router, before = Tickets(ttl_s=3600.0), Tickets(ttl_s=3600.0)
    router.set_keys(ring)
    load = worker_pb2.WatchLoadResponse(instance_id="a", incarnation=1)
    for one in (router, before):
        one.heard(load, 0.0)
    request = PendingRequest("r", "m", RequestClass.INTERACTIVE, 0.0, max_tokens=100)
    placement = Placement("a", 1, "h:1", Decision("a", "", {}), Reservation("a", "r", 0.0, 1))
    slo = types_pb2.Slo(ttft_ms=500, itl_ms=50)

    def issue(tickets: Tickets) -> bytes:
        return tickets.issue(request, placement, attempt=0, slo=slo, elapsed_ms=1.0, now=1.0)

    total = rounds * _REPETITIONS
    desk = TicketDesk("a", 1, required=True, on_expired=lambda: None)
    desk.set_keys(ring)
    asked = [
        pb.GenerateRequest(
            request_id="r", model="m", ticket=issue(router), sampling=pb.SamplingParams(max_tokens=100)
        )
        for _ in range(total)
    ]
    open_desk = TicketDesk("a", 1, required=False, on_expired=lambda: None)
    unsigned = pb.GenerateRequest(request_id="r", model="m", sampling=pb.SamplingParams(max_tokens=100))
    unsigned.ticket = sign(worker_pb2.Ticket.FromString(_body(asked[0].ticket)), None)
    return {
        "issue_unsigned_us": measured_us(lambda _: issue(before), rounds),
        "issue_signed_us": measured_us(lambda _: issue(router), rounds),
        "check_unsigned_us": measured_us(lambda _: open_desk.check(unsigned, from_router=False), rounds),
        "check_signed_us": measured_us(lambda number: desk.check(asked[number], from_router=False), rounds),
    }


def access_costs(rounds: int) -> dict[str, float]:
    """A key among many to its tenant, its rights and its quota."""
    key, table = NewKey.draw(), AccessTable()
    tenants = [access_pb2.Tenant(name=f"t{number}", models=["m"]) for number in range(_TENANTS)]
    keys = [
        control_pb2.RoutedKey(key_id=f"{number:012x}", digest=key.digest, tenant=f"t{number % _TENANTS}")
        for number in range(_KEYS)
    ]
    keys.append(control_pb2.RoutedKey(key_id=key.key_id, digest=key.digest, tenant="t7"))
    table.replace(tenants, keys)
    quota = access_pb2.Quota(requests_per_s=1e9, tokens_per_min=10**15, concurrent=10**6)
    account, shown = Account(quota, 0.0), Credentials(key.text)

    def admit(_: int) -> None:
        caller = table.identify(shown)
        caller.check_allowed("m", types_pb2.REQUEST_CLASS_INTERACTIVE, 0)
        account.take(100, 0.0).end()

    plain_us = measured_us(admit, rounds)
    terms = access_pb2.KeyTerms(
        limits=access_pb2.KeyLimits(models=["m"], most_urgent_priority=-10),
        defaults=access_pb2.KeyDefaults(slo=types_pb2.Slo(ttft_ms=500), max_tokens=64),
    )
    terms.expires.FromSeconds(2**33)
    keys[-1].terms.CopyFrom(terms)
    table.replace(tenants, keys)
    of_key = Account(quota, 0.0, key.key_id)

    def admit_with_terms(_: int) -> None:
        caller, request = table.identify(shown), pb.RouteRequest()
        caller.fill(request)
        caller.check_allowed("m", request.request_class, request.priority)
        account.take(100, 0.0, of_key).end()

    return {
        "identify_and_admit_us": plain_us,
        "identify_and_admit_with_terms_us": measured_us(admit_with_terms, rounds),
    }


def _body(wire: bytes) -> bytes:
    return auth_pb2.SignedTicket.FromString(wire).ticket


def main() -> None:
    """Measures and writes the figures."""
    parser = argparse.ArgumentParser(description="What tickets, keys and quotas cost a request")
    parser.add_argument("--smoke", action="store_true")
    rounds = 200 if (arguments := parser.parse_args()).smoke else 10_000
    figures = ticket_costs(rounds) | access_costs(rounds)
    text = json.dumps(figures, indent=1)
    print(text)
    if not arguments.smoke:
        target = Path(__file__).parent / "results" / "access.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
