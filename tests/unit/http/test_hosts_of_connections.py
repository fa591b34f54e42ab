"""Places of connections: in all, of one host, and which addresses are one host's."""

from __future__ import annotations

import pytest

from services.router.http.errors import HttpError
from services.router.http.hosts import Hosts, host_of


def test_a_place_is_given_back_once() -> None:
    hosts = Hosts(2, 1.0)
    first, _ = hosts.enter("192.0.2.1"), hosts.enter("192.0.2.1")
    with pytest.raises(HttpError) as raised:
        hosts.enter("192.0.2.2")
    assert (raised.value.status, raised.value.code) == (503, "overloaded")
    first()
    first()
    assert hosts.count == 1
    hosts.enter("192.0.2.2")
    assert hosts.count == 2


def test_a_host_has_its_share_and_at_least_one() -> None:
    hosts = Hosts(10, 0.25)
    for _ in range(2):
        hosts.enter("192.0.2.1")
    with pytest.raises(HttpError) as raised:
        hosts.enter("192.0.2.1")
    assert (raised.value.status, raised.value.code) == (429, "too_many_connections")
    hosts.enter("192.0.2.2")
    Hosts(10, 0.01).enter("192.0.2.1")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("fe80::1%eth0", "fe80::1%eth1", True),
        ("", "somewhere", False),
    ],
)
def test_an_address_counts_for_its_host(one: str, other: str, same: bool) -> None:
    assert (host_of(one) == host_of(other)) is same
