"""Where a local cluster keeps batches, and what its tenants may have of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from chiron.cluster.batch_store import is_configured, kept_by_one, router_keys, who_keeps
from chiron.cluster.tenants import read_tenants
from chiron.config import ConfigError


def test_a_file_is_for_the_first_router_and_a_server_for_all() -> None:
    own = router_keys("", Path("/run"), 0)
    assert own == {"batch.store": "sqlite:/run/batches.db"}
    assert router_keys("", Path("/run"), 1) == {}
    assert router_keys("sqlite:/x", Path("/run"), 1) == {}
    for index in (0, 1):
        assert router_keys("postgresql://h/b", Path("/run"), index) == {"batch.store": "postgresql://h/b"}
        assert router_keys("none", Path("/run"), index) == {"batch.store": ""}
        assert router_keys(None, Path("/run"), index) == {}


@pytest.mark.parametrize(
    ("store", "by_one"),
    [("", True), ("sqlite:/x", True), ("postgresql://h/b", False), ("none", False), (None, False)],
)
def test_a_file_is_kept_by_one_router(store: str | None, by_one: bool) -> None:
    assert kept_by_one(store) == by_one


def test_of_several_routers_it_is_told_which_one_keeps_batches() -> None:
    addresses, urls = ["h:1", "h:2"], ["http://h:8000", "http://h:8001"]
    assert who_keeps("", addresses, urls).startswith("batches: router h:1 (http://h:8000/v1) alone")
    assert who_keeps("", addresses, []).startswith("batches: router h:1 alone")
    assert who_keeps("", addresses[:1], urls[:1]) == ""
    assert who_keeps("postgresql://h/b", addresses, urls) == ""


def test_what_the_configuration_says_goes_before_the_default(tmp_path: Path) -> None:
    config = tmp_path / "chiron.toml"
    assert not is_configured(None, {})
    assert not is_configured(config, {})
    config.write_text("[router]\nqueue_limit = 3\n")
    assert not is_configured(config, {})
    assert is_configured(config, {"CHIRON_ROUTER_BATCH_STORE": "sqlite:/x"})
    config.write_text('[router.batch]\nstore = "sqlite:/x"\n')
    assert is_configured(config, {})
    config.write_text("router = 3\n")
    assert not is_configured(config, {})


def test_a_tenants_table_limits_its_batches(tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text("[tenants.lab]\nbatch_items = 5\nbatch_open = 2\nbatch_bytes = 9\nbatch_weight = 0.5\n")
    (tenant,) = read_tenants(file)
    quota = tenant.quota
    assert (quota.batch_items, quota.batch_open, quota.batch_bytes, quota.batch_weight) == (5, 2, 9, 0.5)
    file.write_text("[tenants.lab]\nbatch_items = 1.5\n")
    with pytest.raises(ConfigError, match="batch_items"):
        read_tenants(file)
