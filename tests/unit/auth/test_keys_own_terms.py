"""A key's own limits, defaults and end, below what its tenant may."""

from __future__ import annotations

import pytest

from chiron.auth.access import AccessTable
from chiron.auth.api_keys import NewKey
from chiron.auth.callers import Caller, HeldKey
from chiron.auth.credentials import Credentials
from chiron.internal.v1 import control_pb2
from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import access_pb2, batch_pb2, types_pb2
from chiron.v1 import inference_pb2 as pb
from chiron.v1.access_pb2 import KeyDefaults, KeyLimits, KeyTerms, Quota, Tenant

INTERACTIVE, BATCH = types_pb2.REQUEST_CLASS_INTERACTIVE, types_pb2.REQUEST_CLASS_BATCH
KEY = NewKey.draw()
ACME = Tenant(name="acme", models=["*"])


def routed(**terms: object) -> control_pb2.RoutedKey:
    return control_pb2.RoutedKey(
        key_id=KEY.key_id,
        digest=KEY.digest,
        tenant="acme",
        terms=KeyTerms(**terms),  # type: ignore[arg-type]
    )


def caller(tenant: access_pb2.Tenant = ACME, **terms: object) -> Caller:
    return Caller(tenant, HeldKey.of(routed(**terms)))


def denial(one: Caller, *asked: object) -> str:
    with pytest.raises(ChironError) as caught:
        one.check_allowed(*asked)  # type: ignore[arg-type]
    assert caught.value.reason is Reason.NOT_ALLOWED
    return caught.value.message


@pytest.mark.parametrize(
    ("limits", "asked", "named"),
    [
        ({"models": ["chat"]}, ("other", INTERACTIVE, 0), "model 'other': its models are: chat"),
        ({"classes": [BATCH]}, ("chat", INTERACTIVE, 0), "class interactive"),
        ({"classes": [BATCH]}, ("chat", types_pb2.REQUEST_CLASS_UNSPECIFIED, 0), "class interactive"),
        ({"most_urgent_priority": 3}, ("chat", BATCH, 2), "priority 2: its most urgent is 3"),
    ],
)
def test_what_a_key_may_not_ask_for_is_named_as_the_keys(limits: dict, asked: tuple, named: str) -> None:
    message = denial(caller(limits=KeyLimits(**limits)), *asked)
    assert message.startswith(f"API key {KEY.key_id} may not use {named}")


def test_both_what_the_key_and_what_the_tenant_may_count() -> None:
    narrow = Tenant(name="acme", models=["chat"], classes=[BATCH], most_urgent_priority=5)
    wide = KeyLimits(models=["chat", "other"], classes=[BATCH, INTERACTIVE], most_urgent_priority=-5)
    one = caller(narrow, limits=wide)
    one.check_allowed("chat", BATCH, 5)
    for asked in (("other", BATCH, 5), ("chat", INTERACTIVE, 5), ("chat", BATCH, 4)):
        assert denial(one, *asked).startswith("tenant 'acme'")


def test_a_star_leaves_the_models_to_the_tenant() -> None:
    caller(limits=KeyLimits(models=["*"])).check_allowed("any", INTERACTIVE, 0)


DEFAULTS = KeyDefaults(
    request_class=BATCH, priority=7, slo=types_pb2.Slo(ttft_ms=500, deadline_s=60, refuse_if_late=True)
)


@pytest.mark.parametrize("kind", [pb.GenerateRequest, pb.RouteRequest])
def test_defaults_fill_what_a_request_leaves_open(kind: type) -> None:
    request = kind(slo=types_pb2.Slo(deadline_s=5, refuse_if_late=False))
    caller(defaults=DEFAULTS).fill(request)
    assert (request.request_class, request.priority) == (BATCH, 7)
    assert request.slo == types_pb2.Slo(ttft_ms=500, deadline_s=5, refuse_if_late=False)


def test_what_a_request_says_counts_even_where_it_is_nothing_special() -> None:
    request = pb.GenerateRequest(request_class=INTERACTIVE, priority=0)
    caller(defaults=DEFAULTS).fill(request)
    assert (request.request_class, request.priority) == (INTERACTIVE, 0)
    assert not request.HasField("slo"), "the SLO is a promise of the default class"


def test_without_a_default_class_the_slo_is_of_interactive_requests() -> None:
    one = caller(defaults=KeyDefaults(slo=types_pb2.Slo(ttft_ms=500)))
    interactive, batch = pb.GenerateRequest(), pb.GenerateRequest(request_class=BATCH)
    one.fill(interactive)
    one.fill(batch)
    assert (interactive.slo.ttft_ms, batch.HasField("slo")) == (500, False)


@pytest.mark.parametrize("one", [Caller(ACME), caller(), caller(limits=KeyLimits(concurrent=1))])
def test_who_has_no_defaults_changes_nothing(one: Caller) -> None:
    request, header = pb.GenerateRequest(), batch_pb2.BatchHeader()
    one.fill(request)
    one.fill_batch(header)
    assert request == pb.GenerateRequest()
    assert header == batch_pb2.BatchHeader()


def test_a_batch_takes_the_priority_and_the_deadline_of_a_key_for_batch_requests() -> None:
    header, own = batch_pb2.BatchHeader(), batch_pb2.BatchHeader(priority=0, deadline_s=9)
    for one in (header, own):
        caller(defaults=DEFAULTS).fill_batch(one)
    assert (header.priority, header.deadline_s, own.priority, own.deadline_s) == (7, 60, 0, 9)
    interactive = batch_pb2.BatchHeader()
    caller(defaults=KeyDefaults(slo=types_pb2.Slo(deadline_s=60))).fill_batch(interactive)
    assert interactive.deadline_s == 0


@pytest.mark.parametrize(
    ("quota", "terms", "asked", "most"),
    [
        (Quota(), {}, 0, 0),
        (Quota(tokens_per_min=9), {}, 0, 1024),
        (Quota(default_max_tokens=7), {"limits": KeyLimits(tokens_per_min=9)}, 0, 7),
        (Quota(), {"limits": KeyLimits(tokens_per_min=9)}, 0, 1024),
        (Quota(tokens_per_min=9, default_max_tokens=7), {"defaults": KeyDefaults(max_tokens=3)}, 0, 3),
        (Quota(), {"defaults": KeyDefaults(max_tokens=3)}, 0, 3),
        (Quota(), {"defaults": KeyDefaults(max_tokens=3)}, 50, 50),
    ],
)
def test_most_output_tokens(quota: access_pb2.Quota, terms: dict, asked: int, most: int) -> None:
    one = caller(Tenant(name="acme", quota=quota), **terms)
    assert one.max_tokens(asked) == most
    assert one.metered == bool(quota.tokens_per_min or terms.get("limits", KeyLimits()).tokens_per_min)


class TestExpiry:
    """By the wall clock, which the test holds."""

    def table(self, **more: object) -> AccessTable:
        self.now = 1_000.0
        made = AccessTable(lambda: self.now)
        key = routed(**more)
        key.terms.expires.FromMilliseconds(1_100_500)
        made.replace([ACME], [key])
        return made

    def test_a_key_ends_at_its_time(self) -> None:
        made = self.table()
        self.now = 1_100.4
        assert made.identify(Credentials(KEY.text)).tenant.name == "acme"
        self.now = 1_100.5
        with pytest.raises(ChironError, match=f"{KEY.key_id} expired at 1970-01-01 00:18:20") as caught:
            made.identify(Credentials(KEY.text))
        assert caught.value.reason is Reason.KEY_EXPIRED

    def test_only_the_holder_of_the_secret_hears_that_it_has_ended(self) -> None:
        made = self.table()
        self.now = 2_000.0
        with pytest.raises(ChironError) as caught:
            made.identify(Credentials(KEY.text[:16] + "a" * 43))
        assert caught.value.reason is Reason.KEY_INVALID

    def test_an_administrators_key_ends_too(self) -> None:
        made = AccessTable(lambda: 2_000.0)
        key = control_pb2.RoutedKey(
            key_id=KEY.key_id, digest=KEY.digest, role=access_pb2.ACCESS_ROLE_ADMIN, terms=KeyTerms()
        )
        key.terms.expires.FromSeconds(1_000)
        made.replace([], [key])
        with pytest.raises(ChironError, match="expired"):
            made.is_admin(Credentials(KEY.text))

    def test_other_terms_count_from_the_delta_on(self) -> None:
        made = self.table()
        self.now = 2_000.0
        made.change([], [], [routed(limits=KeyLimits(models=["chat"]))], [])
        found = made.identify(Credentials(KEY.text))
        assert "its models are: chat" in denial(found, "other", INTERACTIVE, 0)
