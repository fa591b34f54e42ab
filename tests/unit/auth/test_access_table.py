"""Identity → tenant → what it may ask for."""

from __future__ import annotations

import pytest

from chiron.auth.access import AccessTable
from chiron.auth.api_keys import NewKey
from chiron.auth.credentials import Credentials, bearer, is_local_peer
from chiron.auth.rights import check_allowed
from chiron.internal.v1 import control_pb2
from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import access_pb2, types_pb2

INTERACTIVE, BATCH = types_pb2.REQUEST_CLASS_INTERACTIVE, types_pb2.REQUEST_CLASS_BATCH
KEY = NewKey.draw()


def routed(key: NewKey = KEY, tenant: str = "acme", *, revoked: bool = False) -> control_pb2.RoutedKey:
    return control_pb2.RoutedKey(key_id=key.key_id, digest=key.digest, tenant=tenant, revoked=revoked)


def table(*tenants: access_pb2.Tenant, keys: list[control_pb2.RoutedKey] | None = None) -> AccessTable:
    made = AccessTable()
    made.replace(
        tenants or [access_pb2.Tenant(name="acme", models=["*"])], [routed()] if keys is None else keys
    )
    return made


def refusal(made: AccessTable, **credentials: object) -> Reason:
    with pytest.raises(ChironError) as caught:
        made.identify(Credentials(**credentials))  # type: ignore[arg-type]
    return caught.value.reason


def test_a_key_stands_for_its_tenant() -> None:
    assert table().identify(Credentials(api_key=KEY.text)).tenant.name == "acme"


def test_a_right_id_with_a_wrong_secret_is_as_unknown_as_a_wrong_id() -> None:
    forged = KEY.text[:16] + NewKey.draw().text[16:]
    assert refusal(table(), api_key=forged) is Reason.KEY_INVALID
    assert refusal(table(), api_key=NewKey.draw().text) is Reason.KEY_INVALID
    assert refusal(table(), api_key="nonsense") is Reason.KEY_INVALID


def test_a_revoked_key_is_refused_and_only_its_holder_hears_so() -> None:
    made = table(keys=[routed(revoked=True)])
    assert refusal(made, api_key=KEY.text) is Reason.KEY_REVOKED
    assert refusal(made, api_key=KEY.text[:16] + "a" * 43) is Reason.KEY_INVALID


def test_without_credentials_nobody_is_anybody() -> None:
    assert refusal(table()) is Reason.CREDENTIALS_MISSING
    assert refusal(table(), local=True) is Reason.CREDENTIALS_MISSING


def test_a_key_of_a_tenant_that_is_gone_is_refused() -> None:
    made = table()
    made.change([], ["acme"], [], [])
    assert refusal(made, api_key=KEY.text) is Reason.TENANT_UNKNOWN


def test_a_certificate_stands_for_the_tenant_of_its_uri_or_the_one_that_lists_it() -> None:
    made = table(
        access_pb2.Tenant(name="acme"),
        access_pb2.Tenant(name="lab", subjects=["spiffe://corp/lab"]),
        keys=[],
    )
    assert made.identify(Credentials(subjects=("chiron://tenant/acme",))).tenant.name == "acme"
    assert made.identify(Credentials(subjects=("spiffe://corp/lab",))).tenant.name == "lab"
    assert refusal(made, subjects=("spiffe://corp/other",)) is Reason.CREDENTIALS_MISSING
    assert refusal(made, subjects=("chiron://tenant/nobody",)) is Reason.TENANT_UNKNOWN
    assert refusal(made, subjects=("chiron://role/router",)) is Reason.CREDENTIALS_MISSING


@pytest.mark.parametrize(
    "subjects",
    [
        ("chiron://tenant/acme", "chiron://tenant/lab"),
        ("chiron://tenant/lab", "chiron://tenant/acme"),
        ("chiron://tenant/acme", "spiffe://corp/lab"),
        ("chiron://tenant/acme", "chiron://tenant/nobody"),
    ],
)
def test_a_certificate_of_two_tenants_is_nobody_s(subjects: tuple[str, ...]) -> None:
    made = table(
        access_pb2.Tenant(name="acme"), access_pb2.Tenant(name="lab", subjects=["spiffe://corp/lab"]), keys=[]
    )
    with pytest.raises(ChironError, match=r"stands for 2 tenants \('[a-z]+', '[a-z]+'\)") as caught:
        made.identify(Credentials(subjects=subjects))
    assert caught.value.reason is Reason.NOT_ALLOWED
    assert made.claimed(Credentials(subjects=subjects)) == ""


def test_two_names_of_the_same_tenant_are_one_and_a_key_says_which() -> None:
    lab = access_pb2.Tenant(name="lab", subjects=["spiffe://corp/lab", "spiffe://corp/lab2"])
    made = table(lab, access_pb2.Tenant(name="acme"))
    same = ("spiffe://corp/lab", "chiron://role/router", "spiffe://corp/lab2", "chiron://tenant/lab")
    assert made.identify(Credentials(subjects=same)).tenant.name == "lab"
    both = Credentials(api_key=KEY.text, subjects=("chiron://tenant/lab", "chiron://tenant/acme"))
    assert made.identify(both).tenant.name == "acme"


def test_changes_take_effect_key_by_key() -> None:
    made = table()
    other = NewKey.draw()
    made.change([], [], [routed(revoked=True), routed(other)], [])
    assert refusal(made, api_key=KEY.text) is Reason.KEY_REVOKED
    assert made.identify(Credentials(api_key=other.text)).tenant.name == "acme"
    made.change([], [], [], [other.key_id])
    assert refusal(made, api_key=other.text) is Reason.KEY_INVALID


@pytest.mark.parametrize(
    ("tenant", "asked", "named"),
    [
        ({"models": ["chat"]}, ("other", INTERACTIVE, 0), "model 'other'"),
        ({}, ("chat", INTERACTIVE, 0), "model 'chat'"),
        ({"models": ["*"], "classes": [BATCH]}, ("chat", INTERACTIVE, 0), "class interactive"),
        (
            {"models": ["*"], "classes": [BATCH]},
            ("chat", types_pb2.REQUEST_CLASS_UNSPECIFIED, 0),
            "class interactive",
        ),
        ({"models": ["*"], "classes": [INTERACTIVE]}, ("chat", BATCH, 0), "class batch"),
        ({"models": ["*"], "most_urgent_priority": 0}, ("chat", BATCH, -1), "priority -1"),
    ],
)
def test_what_a_tenant_may_not_ask_for_is_named(tenant: dict, asked: tuple, named: str) -> None:
    with pytest.raises(ChironError, match=named) as caught:
        check_allowed(access_pb2.Tenant(name="acme", **tenant), *asked)
    assert caught.value.reason is Reason.NOT_ALLOWED


def test_what_a_tenant_may_ask_for_passes() -> None:
    acme = access_pb2.Tenant(name="acme", models=["chat"], classes=[BATCH], most_urgent_priority=-5)
    check_allowed(acme, "chat", BATCH, -5)
    check_allowed(access_pb2.Tenant(name="any", models=["*"]), "chat", INTERACTIVE, -1000)


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        ("ipv4:127.0.0.1:5000", True),
        ("ipv4:127.8.8.8:1", True),
        ("ipv6:%5B::1%5D:5000", True),
        ("ipv6:[::1]:5000", True),
        ("ipv6:%5B::ffff:127.0.0.1%5D:5000", True),
        ("unix:", True),
        ("unix:/tmp/x.sock", True),
        ("ipv4:10.0.0.7:5000", False),
        ("ipv6:%5B::ffff:10.0.0.7%5D:5000", False),
        ("ipv6:%5B2001:db8::1%5D:5000", False),
        ("", False),
    ],
)
def test_who_is_on_this_host(peer: str, local: bool) -> None:
    assert is_local_peer(peer) is local


@pytest.mark.parametrize(
    ("metadata", "key"),
    [
        ([("authorization", "Bearer abc")], "abc"),
        ([("authorization", "bearer  abc ")], "abc"),
        ([("authorization", "Basic abc")], ""),
        ([("authorization-bin", b"Bearer abc")], ""),
        ([], ""),
        (None, ""),
    ],
)
def test_the_bearer_token_is_read(metadata: object, key: str) -> None:
    assert bearer(metadata) == key  # type: ignore[arg-type]
