"""What administrators may give a key, and what a change of it changes."""

from __future__ import annotations

import pytest

from chiron.auth.api_keys import NewKey
from chiron.rpc.errors import ChironError, Reason
from chiron.store import ApiKeyRecord, Snapshot, TenantRecord
from chiron.v1 import access_pb2, types_pb2
from chiron.v1.access_pb2 import CreateKeyRequest, KeyDefaults, KeyLimits, KeyTerms, SetKeyRequest, Tenant
from services.global_controller.access_acts import create_key, revoke_key, set_key
from services.global_controller.key_terms import changed
from services.global_controller.routed_access import RoutedAccess

INTERACTIVE, BATCH = types_pb2.REQUEST_CLASS_INTERACTIVE, types_pb2.REQUEST_CLASS_BATCH
NOW_MS = 1_000_000
WEB = Tenant(name="web", models=["chat"], classes=[BATCH, INTERACTIVE], most_urgent_priority=0)


def state(tenant: Tenant = WEB, *keys: ApiKeyRecord) -> Snapshot:
    return Snapshot(
        tenants={tenant.name: TenantRecord(tenant.name, tenant.SerializeToString())},
        api_keys={key.key_id: key for key in keys},
    )


def at(ms: int) -> KeyTerms:
    terms = KeyTerms()
    terms.expires.FromMilliseconds(ms)
    return terms


def fields_of(error: ChironError) -> list[str]:
    assert error.reason is Reason.INVALID_ARGUMENT
    return [field for field, _ in error.violations]


def create(terms: KeyTerms, tenant: Tenant = WEB, role: int = 0) -> ApiKeyRecord:
    request = CreateKeyRequest(terms=terms, tenant="" if role else "web", role=role)  # type: ignore[arg-type]
    [record] = create_key(state(tenant), request, NewKey.draw(), NOW_MS).puts
    assert isinstance(record, ApiKeyRecord)
    return record


@pytest.mark.parametrize(
    ("terms", "field"),
    [
        (at(NOW_MS), "expires"),
        (KeyTerms(limits=KeyLimits(requests_per_s=-1)), "limits.requests_per_s"),
        (KeyTerms(limits=KeyLimits(requests_per_s=float("inf"))), "limits.requests_per_s"),
        (KeyTerms(limits=KeyLimits(models=["other"])), "limits.models"),
        (KeyTerms(limits=KeyLimits(classes=[0])), "limits.classes"),
        (KeyTerms(limits=KeyLimits(most_urgent_priority=-1)), "limits.most_urgent_priority"),
        (KeyTerms(limits=KeyLimits(most_urgent_priority=1001)), "limits.most_urgent_priority"),
        (KeyTerms(defaults=KeyDefaults(request_class=9)), "defaults.request_class"),
        (KeyTerms(defaults=KeyDefaults(priority=-1)), "defaults.priority"),
        (KeyTerms(defaults=KeyDefaults(slo=types_pb2.Slo(ttft_ms=0))), "defaults.slo.ttft_ms"),
        (
            KeyTerms(defaults=KeyDefaults(request_class=BATCH, slo=types_pb2.Slo(ttft_ms=5))),
            "defaults.slo.ttft_ms",
        ),
        (
            KeyTerms(limits=KeyLimits(classes=[INTERACTIVE]), defaults=KeyDefaults(request_class=BATCH)),
            "defaults.request_class",
        ),
        (
            KeyTerms(limits=KeyLimits(most_urgent_priority=5), defaults=KeyDefaults(priority=4)),
            "defaults.priority",
        ),
    ],
)
def test_what_a_key_cannot_have_is_refused_by_field(terms: KeyTerms, field: str) -> None:
    with pytest.raises(ChironError) as caught:
        create(terms)
    assert fields_of(caught.value) == [field]


def test_a_class_that_the_tenant_may_not_use_is_none_for_its_keys() -> None:
    narrow = Tenant(name="web", classes=[BATCH])
    for terms in (
        KeyTerms(limits=KeyLimits(classes=[INTERACTIVE])),
        KeyTerms(defaults=KeyDefaults(request_class=INTERACTIVE)),
    ):
        with pytest.raises(ChironError, match="interactive"):
            create(terms, narrow)


def test_a_key_with_a_role_may_end_and_has_nothing_else() -> None:
    role = access_pb2.ACCESS_ROLE_ADMIN
    assert create(at(NOW_MS + 1), role=role).parsed_terms() == at(NOW_MS + 1)
    terms = KeyTerms(limits=KeyLimits(concurrent=1), defaults=KeyDefaults(priority=1))
    with pytest.raises(ChironError) as caught:
        create(terms, role=role)
    assert fields_of(caught.value) == ["limits", "defaults"]


def test_a_key_keeps_its_terms_and_routers_are_told_them() -> None:
    terms = KeyTerms(limits=KeyLimits(concurrent=2, models=["*"]), defaults=KeyDefaults(priority=3))
    record = create(terms)
    assert record.parsed_terms() == terms
    entries = RoutedAccess().of(state(WEB, record))
    assert entries.keys[record.key_id].terms == terms


@pytest.mark.parametrize("kind", [0, INTERACTIVE])
def test_a_first_token_is_promised_to_interactive_requests_alone(kind: int) -> None:
    slo = types_pb2.Slo(ttft_ms=5)
    terms = KeyTerms(defaults=KeyDefaults(request_class=kind, slo=slo))  # type: ignore[arg-type]
    assert create(terms).parsed_terms() == terms
    others = KeyTerms(
        defaults=KeyDefaults(
            request_class=BATCH, slo=types_pb2.Slo(itl_ms=5, deadline_s=60, refuse_if_late=True)
        )
    )
    assert create(others).parsed_terms() == others


BEFORE = KeyTerms(
    limits=KeyLimits(requests_per_s=5, models=["a", "b"]),
    defaults=KeyDefaults(priority=0, slo=types_pb2.Slo(ttft_ms=500, itl_ms=50)),
)


def test_a_change_changes_what_is_named_and_nothing_else() -> None:
    after = changed(
        BEFORE,
        KeyTerms(
            limits=KeyLimits(requests_per_s=9, models=["c"], concurrent=7),
            defaults=KeyDefaults(slo=types_pb2.Slo(ttft_ms=100)),
        ),
        ["limits.models", "limits.concurrent", "defaults.slo.ttft_ms"],
    )
    assert after == KeyTerms(
        limits=KeyLimits(requests_per_s=5, models=["c"], concurrent=7),
        defaults=KeyDefaults(priority=0, slo=types_pb2.Slo(ttft_ms=100, itl_ms=50)),
    )


def test_what_is_named_and_not_given_is_taken_back() -> None:
    paths = ["defaults.slo.ttft_ms", "defaults.slo.itl_ms", "limits.models", "limits.requests_per_s"]
    assert changed(BEFORE, KeyTerms(), paths) == KeyTerms(defaults=KeyDefaults(priority=0))
    assert changed(BEFORE, KeyTerms(), ["defaults"]) == KeyTerms(limits=BEFORE.limits)
    assert changed(at(5), KeyTerms(), ["expires"]) == KeyTerms()


def test_an_end_at_the_beginning_of_all_time_is_none_that_is_left_out() -> None:
    assert changed(KeyTerms(), at(0), ["expires"]) == at(0)
    with pytest.raises(ChironError) as caught:
        create(at(0))
    assert fields_of(caught.value) == ["expires"]


@pytest.mark.parametrize(
    "path", ["", "nothing", "limits.nothing", "limits.models.x", "expires.x.y", "limits."]
)
def test_a_path_that_there_is_not_is_refused(path: str) -> None:
    with pytest.raises(ChironError, match="is no path within KeyTerms"):
        changed(BEFORE, KeyTerms(), [path])


class TestSetKey:
    """Changes of a key that is in force."""

    def setup_method(self) -> None:
        terms = KeyTerms(limits=KeyLimits(concurrent=1))
        self.record = ApiKeyRecord("k", b"d", "web", terms=terms.SerializeToString())

    def set(self, terms: KeyTerms, *fields: str, tenant: Tenant = WEB) -> ApiKeyRecord | None:
        request = SetKeyRequest(key_id="k", terms=terms, fields=fields)
        draft = set_key(state(tenant, self.record), request, NOW_MS)
        if draft is None:
            return None
        [record] = draft.puts
        assert isinstance(record, ApiKeyRecord)
        return record

    def test_the_rest_of_the_record_stays(self) -> None:
        record = self.set(KeyTerms(limits=KeyLimits(concurrent=2)), "limits.concurrent")
        assert record is not None
        assert (record.digest, record.tenant) == (b"d", "web")
        assert record.parsed_terms().limits.concurrent == 2

    def test_what_is_so_already_writes_nothing(self) -> None:
        assert self.set(KeyTerms(limits=KeyLimits(concurrent=1)), "limits.concurrent") is None

    def test_nothing_named_is_refused(self) -> None:
        with pytest.raises(ChironError, match="nothing is named"):
            self.set(KeyTerms(limits=KeyLimits(concurrent=2)))

    def test_a_key_that_there_is_not(self) -> None:
        with pytest.raises(ChironError) as caught:
            set_key(state(), SetKeyRequest(key_id="k", fields=["expires"]), NOW_MS)
        assert caught.value.reason is Reason.KEY_NOT_FOUND

    def test_a_revoked_key_is_not_changed(self) -> None:
        draft = revoke_key(state(WEB, self.record), "k")
        assert draft is not None
        [self.record] = draft.puts  # type: ignore[misc]
        with pytest.raises(ChironError, match="was revoked, which is for good"):
            self.set(KeyTerms(), "limits.concurrent")

    def test_a_key_with_a_ttft_becomes_one_for_batch_work_only_without_it(self) -> None:
        before = KeyTerms(defaults=KeyDefaults(slo=types_pb2.Slo(ttft_ms=5)))
        self.record = ApiKeyRecord("k", b"d", "web", terms=before.SerializeToString())
        batch = KeyTerms(defaults=KeyDefaults(request_class=BATCH))
        with pytest.raises(
            ChironError, match=r"defaults\.slo\.ttft_ms: a key's SLO is for requests of its class"
        ):
            self.set(batch, "defaults.request_class")
        record = self.set(batch, "defaults.request_class", "defaults.slo.ttft_ms")
        assert record is not None
        assert record.parsed_terms() == batch

    def test_what_a_narrower_tenant_has_made_wrong_before_stops_no_other_change(self) -> None:
        terms = KeyTerms(limits=KeyLimits(models=["chat"]))
        self.record = ApiKeyRecord("k", b"d", "web", terms=terms.SerializeToString())
        narrower = Tenant(name="web", models=["other"])
        assert self.set(KeyTerms(limits=KeyLimits(concurrent=2)), "limits.concurrent", tenant=narrower)
        with pytest.raises(ChironError, match="'third' is none of tenant web's"):
            self.set(KeyTerms(limits=KeyLimits(models=["third"])), "limits.models", tenant=narrower)
