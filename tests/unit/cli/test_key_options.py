"""The options of `chiron keys`: what they say of a key, what is wrong with them, and how keys are told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from chiron.auth.api_keys import NewKey
from chiron.cli import keys
from chiron.cli.key_commands import keys_app
from chiron.cli.key_terms import (
    PATHS,
    KeyOptions,
    defaults_text,
    limits_text,
    near_text,
    state_text,
    terms_of,
)
from chiron.cli.runner import EXIT_BAD_START, CliError
from chiron.cluster.tenants import read_tenants
from chiron.rpc.errors import ChironError
from chiron.store import Snapshot
from chiron.v1 import access_pb2 as pb
from chiron.v1 import types_pb2
from services.global_controller.access_acts import apply_tenant
from services.global_controller.key_terms import changed

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
GIVEN: dict[str, Any] = {
    "requests_per_s": 2.5,
    "tokens_per_min": 1000,
    "concurrent": 3,
    "allow_model": ("chat", "code"),
    "allow_class": ("batch", "interactive"),
    "most_urgent_priority": 0,
    "request_class": "batch",
    "priority": 0,
    "ttft_ms": 500.0,
    "itl_ms": 50.0,
    "deadline": "2h",
    "refuse_if_late": False,
    "max_tokens": 64,
    "expires": "90d",
}


def test_every_option_sets_its_field_and_no_other() -> None:
    assert GIVEN.keys() == PATHS.keys()
    for name, value in GIVEN.items():
        terms, paths = terms_of(KeyOptions(**{name: value}), NOW)
        assert paths == [PATHS[name]]
        # What one option gives is all that there is, and its path covers it.
        assert changed(pb.KeyTerms(), terms, paths) == terms != pb.KeyTerms()


def test_all_options_together() -> None:
    terms, paths = terms_of(KeyOptions(**GIVEN), NOW)
    assert len(set(paths)) == len(GIVEN)
    assert limits_text(terms.limits) == (
        "2.5 requests/s, 1000 tokens/min, 3 at once, models chat code, classes batch interactive, "
        "priority >= 0"
    )
    assert defaults_text(terms.defaults) == (
        "class batch, priority 0, TTFT 500 ms, ITL 50 ms, deadline 2h00m, not refused if late, 64 tokens"
    )
    assert terms.expires.ToDatetime(tzinfo=UTC) == NOW + timedelta(days=90)


def test_nothing_said_is_nothing_set() -> None:
    assert terms_of(KeyOptions(), NOW) == (pb.KeyTerms(), [])
    assert limits_text(pb.KeyLimits(models=["*"])) == "as its tenant"
    assert defaults_text(pb.KeyDefaults()) == ""


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("12h", NOW + timedelta(hours=12)),
        ("1d12h", NOW + timedelta(days=1, hours=12)),
        ("2027-01-31", datetime(2027, 1, 31, tzinfo=UTC)),
        ("2027-01-31 08:30", datetime(2027, 1, 31, 8, 30, tzinfo=UTC)),
        ("2027-01-31T08:30:00+02:00", datetime(2027, 1, 31, 6, 30, tzinfo=UTC)),
    ],
)
def test_when_a_key_ends(text: str, when: datetime) -> None:
    assert terms_of(KeyOptions(expires=text), NOW)[0].expires.ToDatetime(tzinfo=UTC) == when


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"expires": "soon"}, "--expires: must be a time from now as 90d or 12h, or a date, not 'soon'"),
        ({"expires": "5"}, "--expires: must be a time from now as 90d or 12h, or a date, not '5'"),
        ({"expires": "99999d"}, "--expires: must be at most 36500d"),
        ({"deadline": "0"}, "--deadline: must be a time like"),
        ({"request_class": "bulk"}, "--class: must be interactive or batch, not 'bulk'"),
        ({"allow_class": ("batch", "x")}, "--allow-class: must be interactive or batch, not 'x'"),
        ({"tokens_per_min": 2**64}, "--tokens-per-min: "),
        ({"priority": 2**31}, "--priority: "),
        ({"clear": ("speed",)}, "--clear: 'speed' is no option of a key: there are requests-per-s, "),
        ({"clear": ("ttft-ms",), "ttft_ms": 5.0}, "--clear ttft-ms: it is set as well"),
    ],
)
def test_bad_options_are_one_line_that_names_the_option(options: dict, error: str) -> None:
    with pytest.raises(CliError) as caught:
        terms_of(KeyOptions(**options), NOW)
    assert str(caught.value).startswith(error)
    assert caught.value.status == EXIT_BAD_START


def test_clear_takes_options_back_by_their_names() -> None:
    terms, paths = terms_of(KeyOptions(clear=("--class", "ttft-ms", "expires")), NOW)
    assert (terms, paths) == (
        pb.KeyTerms(),
        ["defaults.request_class", "defaults.slo.ttft_ms", "expires"],
    )


def test_state_and_what_is_nearly_used_up() -> None:
    key = pb.ApiKey()
    assert state_text(key, NOW) == "in force"
    key.terms.expires.FromDatetime(NOW + timedelta(days=1))
    assert state_text(key, NOW) == "until 2026-03-02 12:00"
    assert state_text(key, NOW + timedelta(days=1)) == "expired 2026-03-02"
    key.revoked = True
    assert state_text(key, NOW) == "revoked"
    for share, router in ((0.8, "r1"), (1.0, "r2")):
        key.near_limits.add(limit="concurrent", share=share, router_id=router)
    assert near_text(key) == "concurrent 100 % at r2, concurrent 80 % at r1"


def test_a_tenants_table_says_what_it_weighs(tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text("[tenants.gold]\nweight = 2.5\n")
    (tenant,) = read_tenants(file)
    assert tenant.quota == pb.Quota(weight=2.5)
    state = Snapshot()
    assert apply_tenant(state, tenant) is not None
    tenant.quota.weight = -1.0
    with pytest.raises(ChironError, match=r"quota\.weight: must be a number >= 0"):
        apply_tenant(state, tenant)


def test_a_class_is_told_by_its_name() -> None:
    assert defaults_text(pb.KeyDefaults(request_class=types_pb2.REQUEST_CLASS_INTERACTIVE)) == (
        "class interactive"
    )


_TYPED = [
    *("--requests-per-s", "2.5", "--tokens-per-min", "1000", "--concurrent", "3"),
    *(
        "--allow-model",
        "chat",
        "--allow-model",
        "code",
        "--allow-class",
        "batch",
        "--allow-class",
        "interactive",
    ),
    *(
        "--most-urgent-priority",
        "0",
        "--class",
        "batch",
        "--priority",
        "0",
        "--ttft-ms",
        "500",
        "--itl-ms",
        "50",
    ),
    *("--deadline", "2h", "--no-refuse-if-late", "--max-tokens", "64", "--expires", "90d"),
]


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (["create", "--tenant", "web", "--label", "site"], KeyOptions(**GIVEN)),
        (["set", "abc", "--clear", "ttft-ms"], KeyOptions(**GIVEN, clear=("ttft-ms",))),
    ],
    ids=["create", "set"],
)
def test_what_is_typed_is_what_is_asked_for(
    command: list[str], options: KeyOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []

    async def remember(*arguments: object) -> int:
        asked.append(arguments)
        return 0

    monkeypatch.setattr(keys, "create_key", remember)
    monkeypatch.setattr(keys, "set_key", remember)
    result = CliRunner().invoke(keys_app, [*command, *_TYPED, "--controller", "h:1"])
    assert result.exit_code == 0, result.output
    named = ("web", "", "site") if command[0] == "create" else ("abc",)
    assert asked == [("h:1", *named, options)]


async def test_a_key_in_the_place_of_its_id_is_not_repeated() -> None:
    made = NewKey.draw()
    for act in (
        keys.set_key("127.0.0.1:1", made.text, KeyOptions(concurrent=1)),
        keys.revoke_keys("127.0.0.1:1", ["other", made.text]),
    ):
        with pytest.raises(CliError, match=f"its id is {made.key_id}$") as caught:
            await act
        assert made.text not in str(caught.value)
