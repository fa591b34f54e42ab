"""The client package stands alone: no server code, no OpenTelemetry needed, typed."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files

import chiron.client

LOADED = """
import sys
import chiron.client
print("\\n".join(sorted(sys.modules)))
"""
OWN = ("chiron.client", "chiron.v1")
# Not among them: grpc_health and grpc_reflection, which grpcio itself imports where they are installed.
SERVER_DEPENDENCIES = ("google.rpc", "numpy", "opentelemetry.sdk", "pynvml", "rich", "typer", "uvloop")


def modules_after_import() -> list[str]:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOADED], capture_output=True, text=True, check=True
    )
    return result.stdout.split()


def test_importing_the_client_loads_no_server_module():
    loaded = modules_after_import()
    chiron = [name for name in loaded if name.startswith("chiron.")]
    assert "chiron.client" in chiron
    assert [name for name in chiron if not name.startswith(OWN)] == []
    assert [name for name in loaded if name.split(".")[0] == "services"] == []


def test_importing_the_client_loads_no_dependency_of_the_server():
    loaded = modules_after_import()
    prefixes = tuple(f"{each}." for each in SERVER_DEPENDENCIES)
    heavy = [name for name in loaded if f"{name}.".startswith(prefixes)]
    assert heavy == []


def test_the_package_declares_its_types():
    assert files("chiron.client").joinpath("py.typed").is_file()


def test_everything_public_is_listed_once_and_exists():
    names = chiron.client.__all__
    assert len(names) == len(set(names))
    assert all(hasattr(chiron.client, name) for name in names)
