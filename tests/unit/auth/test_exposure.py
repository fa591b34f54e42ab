"""What may listen where, and what is said about it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from chiron.auth import certs
from chiron.auth.settings import AuthSettings, TlsSettings, check_exposure, identity_of, off_notice
from chiron.config import ConfigError, load_config
from services.router.config import RouterConfig

TLS = TlsSettings(Path("ca"), Path("cert"), Path("key"))
OFF, ON = AuthSettings(), AuthSettings(require=True)


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "localhost:1", "[::1]:1", "127.9.9.9:1"])
def test_loopback_needs_nothing_and_says_so_loudly(listen: str) -> None:
    check_exposure(listen, OFF, TlsSettings())
    assert "authentication is OFF" in off_notice(listen, OFF)
    assert off_notice(listen, ON) == ""


@pytest.mark.parametrize("listen", ["127.0.0.1", "nonsense", "localhost:", "10.0.0.1:http"])
def test_what_is_no_address_is_not_told_to_be_insecure(listen: str) -> None:
    with pytest.raises(ValueError, match=f"^http.listen: expected host:port, got '{listen}'$"):
        check_exposure(listen, ON, TLS, key="http.listen")


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "router.example:1", ":1"])
def test_off_loopback_needs_authentication_and_encryption_or_a_word_that_waives_them(listen: str) -> None:
    with pytest.raises(ValueError, match=r"^listen: .*no authentication.*insecure = true"):
        check_exposure(listen, OFF, TLS)
    with pytest.raises(ValueError, match=r"^listen: .*no encryption"):
        check_exposure(listen, ON, TlsSettings())
    check_exposure(listen, ON, TLS)
    insecure = AuthSettings(insecure=True)
    check_exposure(listen, insecure, TlsSettings())
    assert "whoever reaches" in off_notice(listen, insecure)


def test_a_service_refuses_to_start_in_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(RouterConfig, "router", environ={}, overrides={"listen": "0.0.0.0:50051"})
    assert str(caught.value).startswith("[router] listen: 0.0.0.0:50051 is reachable from other hosts")
    assert "\n" not in str(caught.value)


def test_shared_tables_count_for_every_service_and_its_own_over_them(tmp_path: Path) -> None:
    file = tmp_path / "chiron.toml"
    file.write_text(
        '[auth]\nrequire = true\n[tls]\nca = "a"\ncert = "b"\nkey = "c"\n'
        '[router.tls]\ncert = "mine"\n[agent]\ngpus = 1\n'
    )
    config = load_config(RouterConfig, "router", file=file, environ={})
    assert config.auth.require
    assert config.tls == TlsSettings(Path("a"), Path("mine"), Path("c"))
    config = load_config(
        RouterConfig, "router", file=file, environ={"CHIRON_TLS_KEY": "k", "CHIRON_AUTH_REQUIRE": "0"}
    )
    assert config.tls.key == Path("k")
    assert not config.auth.require
    environ = {"CHIRON_TLS_KEY": "k", "CHIRON_ROUTER_TLS_KEY": "own"}
    assert load_config(RouterConfig, "router", file=file, environ=environ).tls.key == Path("own")


def test_a_misspelt_key_of_a_shared_table_is_named(tmp_path: Path) -> None:
    file = tmp_path / "chiron.toml"
    file.write_text("[tls]\nkee = 1\n")
    with pytest.raises(ConfigError, match=r"\[tls\].*tls\.kee"):
        load_config(RouterConfig, "router", file=file, environ={})
    with pytest.raises(ConfigError, match="CHIRON_AUTH_REQIRE"):
        load_config(RouterConfig, "router", environ={"CHIRON_AUTH_REQIRE": "1"})


@pytest.mark.parametrize(
    "given", [{"ca": Path("x")}, {"cert": Path("x"), "key": Path("y")}, {"mutual": True}]
)
def test_half_a_set_of_tls_files_is_refused(given: dict) -> None:
    with pytest.raises(ValueError, match=r"^(ca|cert|key): needed with"):
        TlsSettings(**given)


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    good = tmp_path / "good.pem"
    good.write_text("-----BEGIN CERTIFICATE-----")
    with pytest.raises(ConfigError, match=r"\[tls\] cert: cannot read"):
        identity_of(TlsSettings(good, tmp_path / "none", good), OFF)
    (tmp_path / "bad").write_text("words")
    with pytest.raises(ConfigError, match=r"\[tls\] key: .* is no PEM file"):
        identity_of(TlsSettings(good, good, tmp_path / "bad"), OFF)
    with pytest.raises(ConfigError, match=r"\[auth\] key_file: cannot read"):
        identity_of(TlsSettings(), AuthSettings(key_file=tmp_path / "none"))


def test_certificates_that_cannot_serve_are_told_from_keys_that_are_not_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certs.init(tmp_path, [], days=1, authority_days=1)
    authority, ca = certs.Authority.load(tmp_path), tmp_path / "ca.pem"
    cert, key = tmp_path / "router.pem", tmp_path / "router.key"
    assert identity_of(TlsSettings(ca, cert, key), OFF).tls is not None

    def told(cert: Path, key: Path, ca: Path = ca) -> str:
        with pytest.raises(ConfigError) as caught:
            identity_of(TlsSettings(ca, cert, key), OFF)
        return str(caught.value)

    other = tmp_path / "controller.key"
    assert told(cert, other) == f"[tls] key: {other} is not the key of {cert}"
    assert told(cert, cert) == f"[tls] key: {cert} holds no private key that is usable without a password"
    assert told(key, key) == f"[tls] cert: {key} holds no certificate"
    assert told(cert, key, ca=key) == f"[tls] ca: {key} holds no certificate"

    def issued(name: str, days: int) -> tuple[Path, Path]:
        files = tmp_path / f"{name}.pem", tmp_path / f"{name}.key"
        for file, content in zip(files, authority.issue(name, roles=["router"], days=days), strict=True):
            file.write_bytes(content)
        return files

    assert told(*issued("old", 0)).startswith(f"[tls] cert: {tmp_path / 'old.pem'} expired at 20")
    monkeypatch.setattr(certs, "_BACKDATED", timedelta(days=-1))
    assert told(*issued("new", 2)).startswith(f"[tls] cert: {tmp_path / 'new.pem'} is not valid before 20")
