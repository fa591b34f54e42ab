"""`chiron up` where the controllers ask for a certificate: without one, with a foreign one, with its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from chiron.auth import certs
from tests.support.chiron_command import chiron, chiron_up

HOSTS = ["localhost", "127.0.0.1"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Certificates of the cluster, one for all of its services among them, and of another authority."""
    for name in ("ours", "theirs"):
        certs.init(tmp_path / name, HOSTS, days=1, authority_days=1)
    certs.issue(
        tmp_path / "ours",
        "node",
        roles=["controller", "router", "agent", "worker"],
        tenant="",
        hosts=HOSTS,
        days=1,
    )
    return tmp_path


def configured(folder: Path) -> Path:
    ours, config = folder / "ours", folder / "chiron.toml"
    config.write_text(
        f'[tls]\nca = "{ours / "ca.pem"}"\ncert = "{ours / "node.pem"}"\nkey = "{ours / "node.key"}"\n'
        f'[agent]\nworker_cert = "{ours / "node.pem"}"\nworker_key = "{ours / "node.key"}"\n'
    )
    return config


def showing(monkeypatch: pytest.MonkeyPatch, ca: Path, pair: Path | None = None) -> None:
    """What commands trust from here on, and the certificate that they show."""
    monkeypatch.setenv("CHIRON_CA", str(ca))
    if pair is not None:
        monkeypatch.setenv("CHIRON_CERT", f"{pair}.pem")
        monkeypatch.setenv("CHIRON_KEY", f"{pair}.key")


async def refusal(folder: Path, *arguments: str) -> str:
    """The one line that `chiron up` ends with, having started nothing."""
    async with chiron_up(*arguments, directory=folder / "run") as up:
        assert await up.end() == 2
    [line] = up.lines
    # Not even a log: no service has run.
    assert not (folder / "run").exists()
    return line


async def test_without_a_certificate_it_says_which_one_is_missing_and_where_it_goes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = f"--config={configured(folder)}"
    remedy = "give --ca, --cert and --key before the command (or CHIRON_CA, CHIRON_CERT, CHIRON_KEY), such as"
    line = await refusal(folder, config)
    assert line.startswith(
        "error: the controllers have [tls], and take calls from holders of a certificate alone"
    )
    assert "this command has no certificate" in line
    assert remedy in line

    showing(monkeypatch, folder / "ours" / "ca.pem")
    line = await refusal(folder, config)
    assert "this command has --ca, but no certificate" in line
    assert remedy in line


async def test_certificates_of_different_authorities_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, ours, theirs = f"--config={configured(folder)}", folder / "ours", folder / "theirs"
    showing(monkeypatch, ours / "ca.pem", theirs / "admin")
    line = await refusal(folder, config)
    assert line.startswith(
        f"error: --cert is not of the controllers' authority, [tls] ca = {ours / 'ca.pem'}; give "
    )
    showing(monkeypatch, theirs / "ca.pem", ours / "admin")
    assert await refusal(folder, config) == (
        f"error: the controllers' certificate, [tls] cert = {ours / 'node.pem'}, "
        "is not of the authority in --ca"
    )


async def test_a_certificate_where_the_cluster_has_none_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    showing(monkeypatch, folder / "ours" / "ca.pem", folder / "ours" / "admin")
    assert await refusal(folder) == (
        "error: this command has a certificate authority (--ca, CHIRON_CA), and the controllers have no [tls]"
    )


async def test_with_an_administrator_s_certificate_it_serves(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    showing(monkeypatch, folder / "ours" / "ca.pem", folder / "ours" / "admin")
    async with chiron_up(
        f"--config={configured(folder)}", "--nodes=1", "--gpus=1", directory=folder / "run"
    ) as up:
        await up.ready()
        answer = await chiron(
            "generate", "toy", "Hello.", "--max-tokens=4", f"--router={up.router}", **os.environ
        )
    assert (answer.status, answer.stderr) == (0, "")
