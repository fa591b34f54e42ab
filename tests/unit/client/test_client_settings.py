"""Settings that cannot work are refused when the client is made."""

from __future__ import annotations

import pytest

from chiron.client import Client, InsecureTransport, InvalidRequest, TlsConfig
from chiron.client.security import is_loopback


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "127.8.9.1:1", "localhost:1", "[::1]:1", "unix:/run/x.sock"]
)
def test_loopback_is_recognised(address):
    assert is_loopback(address)
    Client(address, api_key="k")


@pytest.mark.parametrize(
    "address", ["10.0.0.1:1", "router.example:1", "[2001:db8::1]:1", "0.0.0.0:1", "dns:///x:1"]
)
def test_an_api_key_never_leaves_this_host_in_clear_text(address):
    assert not is_loopback(address)
    with pytest.raises(InsecureTransport, match=r"refusing to send an API key to .* without TLS"):
        Client(["127.0.0.1:1", address], api_key="k-secret")
    Client(address, api_key="k-secret", insecure_ok=True)
    Client(address, api_key="k-secret", tls=TlsConfig())
    Client(address)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"routers": []}, "routers"),
        ({"routers": ""}, "routers"),
        ({"routers": "127.0.0.1"}, "routers: expected host:port, not '127.0.0.1'"),
        ({"routers": ["127.0.0.1:1", "h:99999"]}, "routers: expected host:port, not 'h:99999'"),
        ({"routers": "h:0"}, "routers: expected host:port, not 'h:0'"),
        ({"routers": "::1:50051"}, "routers: expected host:port, not '::1:50051'"),
        ({"routers": "dns:///h"}, "routers: expected host:port, not 'dns:///h'"),
        ({"max_attempts": 0}, "max_attempts: must be >= 1, not 0"),
        ({"max_worker_channels": 0}, "max_worker_channels: must be >= 1, not 0"),
        ({"connect_timeout_s": 0}, "connect_timeout_s: must be > 0, not 0"),
        ({"timeout_s": -1}, "timeout_s: must be > 0, not -1"),
        ({"silence_s": 0}, "silence_s: must be > 0, not 0"),
    ],
)
def test_a_bad_setting_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        Client(**{"routers": "127.0.0.1:1", **options})


def test_a_key_that_cannot_travel_is_refused_without_showing_it():
    with pytest.raises(InvalidRequest) as caught:
        Client("127.0.0.1:1", api_key="sécret")
    assert "sécret" not in str(caught.value)


@pytest.mark.parametrize("timeout_s", [0, float("nan"), "5"])
def test_a_bad_timeout_of_a_request_is_named(timeout_s):
    with pytest.raises(InvalidRequest, match=f"timeout_s: must be a number > 0, not {timeout_s!r}"):
        Client("127.0.0.1:1").generate(model="toy", prompt="x", timeout_s=timeout_s)


def test_certificate_and_key_belong_together():
    with pytest.raises(ValueError, match="cert and key belong together"):
        TlsConfig(cert=b"x")


def test_a_missing_file_is_reported_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ca\.pem"):
        Client("10.0.0.1:1", tls=TlsConfig(ca=tmp_path / "ca.pem"))


def test_private_values_do_not_show():
    assert "s3cret" not in repr(TlsConfig(cert=b"c", key=b"s3cret"))
