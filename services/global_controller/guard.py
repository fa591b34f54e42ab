"""Who may call a controller: administrators, agents and routers, each for their own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from chiron.auth.access import expired
from chiron.auth.api_keys import digest_of, id_of, key_in, matches
from chiron.auth.credentials import Credentials
from chiron.auth.settings import AuthSettings
from chiron.config import ConfigError
from chiron.rpc.errors import ChironError, Reason
from chiron.rpc.guard import Check, Context, Guard
from chiron.store import ApiKeyRecord, Snapshot
from chiron.v1 import access_pb2

_log = logging.getLogger(__name__)
ADMIN, AGENT, ROUTER = "admin", "agent", "router"
_ROLES = {
    ADMIN: access_pb2.ACCESS_ROLE_ADMIN,
    AGENT: access_pb2.ACCESS_ROLE_AGENT,
    ROUTER: access_pb2.ACCESS_ROLE_ROUTER,
}


class Doorkeeper:
    """Judges callers by certificate role, or by an API key with that role."""

    def __init__(self, auth: AuthSettings, snapshot: Callable[[], Snapshot]) -> None:
        """Reads, or makes, the administrator's key file. Raises ConfigError."""
        self._required = auth.require
        self._snapshot = snapshot
        self._first: tuple[str, bytes] | None = None
        """Id and digest of the key in the file."""
        if auth.admin_key_file is not None:
            text = _first_key(auth.admin_key_file)
            self._first = id_of(text), digest_of(text)

    def guard(self) -> Guard:
        """The checks by method."""
        admin = self._check(ADMIN)
        control = "/chiron.internal.v1.ControlService/"
        return Guard(
            {
                "/chiron.v1.ClusterService/": admin,
                "/chiron.v1.AccessService/": admin,
                f"{control}ConnectAgent": self._check(AGENT),
                f"{control}ConnectRouter": self._check(ROUTER),
            }
        )

    def _check(self, role: str) -> Check:
        def check(context: Context) -> None:
            self.judge(Credentials.of(context), role)

        return check

    def judge(self, credentials: Credentials, role: str) -> None:
        """Raises ChironError: CREDENTIALS_MISSING, KEY_INVALID, KEY_REVOKED, KEY_EXPIRED, NOT_ALLOWED."""
        if not self._required and (credentials.local or role != ADMIN):
            return
        if credentials.api_key:
            held = self._role_of(credentials.api_key)
            # Who may make keys of every role gains nothing by using one.
            if held not in (role, ADMIN):
                raise ChironError(
                    Reason.NOT_ALLOWED, f"this API key has {held or 'no role'}; needed is {role}"
                )
            return
        if credentials.has_role(role):
            return
        if credentials.roles:
            has = ", ".join(credentials.roles)
            raise ChironError(Reason.NOT_ALLOWED, f"this certificate has the role {has}; needed is {role}")
        raise ChironError(
            Reason.CREDENTIALS_MISSING,
            f"this call needs the role {role}: send an API key with it, or present a certificate of it",
        )

    def _role_of(self, text: str) -> str:
        """The role that a key has; empty for a tenant's key."""
        key_id = id_of(text)
        if self._first is not None and key_id == self._first[0] and matches(text, self._first[1]):
            return ADMIN
        record: ApiKeyRecord | None = self._snapshot().api_keys.get(key_id)
        if record is None or not matches(text, record.digest):
            raise ChironError(Reason.KEY_INVALID, "this API key is not one of this cluster's")
        if record.revoked:
            raise ChironError(Reason.KEY_REVOKED, f"API key {record.key_id} was revoked")
        if record.terms and (terms := record.parsed_terms()).HasField("expires"):
            expires_s = terms.expires.ToMilliseconds() / 1e3
            if time.time() >= expires_s:
                raise expired(record.key_id, expires_s)
        return next((name for name, role in _ROLES.items() if role == record.role), "")


def _first_key(file: Path) -> str:
    made = not file.exists()
    try:
        text = key_in(file)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"[auth] admin_key_file: cannot use {file}: {error}") from error
    if made:
        _log.warning("made an administrator's API key: %s", file)
    if not id_of(text):
        raise ConfigError(f"[auth] admin_key_file: {file} holds no API key")
    return text
