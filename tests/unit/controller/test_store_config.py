"""The controller's store: memory unless told otherwise, and errors that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from chiron.config import ConfigError, load_config
from chiron.store import MemoryStore, Store
from chiron.store.etcd import EtcdStore
from services.global_controller.config import ControllerConfig
from services.global_controller.store_config import open_store


def opened(**keys: str) -> Store:
    overrides = {f"store.{key}": value for key, value in keys.items()}
    config = load_config(ControllerConfig, "controller", environ={}, overrides=overrides)
    return open_store(config.store, config.decisions_kept)


def test_memory_is_the_default() -> None:
    assert isinstance(opened(), MemoryStore)


async def test_a_file_names_etcd_its_members_and_the_password(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("a secret\n")
    file = tmp_path / "chiron.toml"
    file.write_text(
        f"""
        [controller.store]
        kind = "etcd"
        endpoints = ["a:2379", "[::1]:2379"]
        user = "chiron"
        password_file = "{password}"
        """
    )
    config = load_config(ControllerConfig, "controller", file=file, environ={})
    store = open_store(config.store, config.decisions_kept)
    assert isinstance(store, EtcdStore)
    assert store.settings.endpoints == ("a:2379", "[::1]:2379")
    assert (store.settings.user, store.settings.password) == ("chiron", "a secret")
    await store.close()


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({}, "store.endpoints: at least one host:port is needed"),
        ({"endpoints": "etcd.example"}, "store.endpoints: expected host:port, not 'etcd.example'"),
        ({"endpoints": "e:70000"}, "store.endpoints: expected host:port, not 'e:70000'"),
        ({"endpoints": "a:1", "prefix": "/x/"}, "store.prefix: must be a name that does not end in '/'"),
        ({"endpoints": "a:1", "prefix": ""}, "store.prefix: must be a name"),
        ({"endpoints": "a:1", "user": "u"}, "store.password_file: needed with user"),
        ({"endpoints": "a:1", "password_file": "f"}, "store.user: needed with password_file"),
        ({"endpoints": "a:1", "tls_key": "k"}, "store.tls_certificate: needed with tls_key"),
        ({"endpoints": "a:1", "tls_certificate": "c"}, "store.tls_key: needed with tls_certificate"),
        ({"endpoints": "a:1", "tls_certificate": "c", "tls_key": "k"}, "store.tls_ca: needed with tls_cert"),
        ({"endpoints": "a:1", "tls_ca": "/none"}, "store.tls_ca: cannot read /none: No such file"),
        (
            {"endpoints": "a:1", "user": "u", "password_file": "/none"},
            "store.password_file: cannot read /none",
        ),
        ({"endpoints": "a:1", "max_operations": "2"}, "store.max_operations: must be >= 8, not 2"),
        ({"endpoints": "a:1", "max_request_bytes": "1"}, "store.max_request_bytes: must be >= 1024, not 1"),
        ({"kind": "memory", "endpoints": "a:1"}, 'store.endpoints: only with kind = "etcd"'),
        ({"kind": "zookeeper"}, "'store.kind': expected one of memory, etcd, not 'zookeeper'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_values_are_refused_naming_the_key(keys: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        opened(**{"kind": "etcd", **keys})
    assert told in str(caught.value)
