"""Who a caller is and what its tenant may ask for: one layer for every door. Pure."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from chiron.auth.api_keys import id_of, matches
from chiron.auth.callers import Caller, HeldKey
from chiron.auth.credentials import TENANT_URI, Credentials
from chiron.internal.v1 import control_pb2
from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import access_pb2

_HEARD_SOON_S = 1.0
"""What a caller is told to wait who may be known once a controller is heard."""
_NOBODY = "this cluster asks who calls: send an API key in the header `authorization: Bearer KEY`"
_OR_CERTIFICATE = ", or present a client certificate of a tenant"
_NO_KEY = (
    "this API key is not one of this cluster's tenants: `chiron keys create --tenant` makes those; the key "
    "in the controllers' `admin_key_file` is for operators, and none for requests"
)
"""Said of every key that is not known. Whether it is the operators' is not told: routers do not know it."""


class AccessTable:
    """Tenants, and the keys and certificate subjects that stand for them."""

    def __init__(self, wall_clock: Callable[[], float] = time.time, *, certificates: bool = False) -> None:
        """Nobody is known.

        Args:
            wall_clock: seconds since the epoch, by which keys expire.
            certificates: whether the doors ask callers for one, so that it may say who calls.
        """
        self.tenants: dict[str, access_pb2.Tenant] = {}
        self.keys: dict[str, control_pb2.RoutedKey] = {}
        self.held: dict[str, HeldKey] = {}
        """The same keys, read once."""
        self._by_subject: dict[str, str] = {}
        self._callers: dict[str, Caller] = {}
        self._wall_clock = wall_clock
        self._nobody = _NOBODY + _OR_CERTIFICATE * certificates
        self.outdated = False
        """What there is was kept from an earlier time: who is not among it may be there all the same."""

    def replace(self, tenants: Iterable[access_pb2.Tenant], keys: Iterable[control_pb2.RoutedKey]) -> None:
        """Takes a whole table."""
        self.tenants = {tenant.name: tenant for tenant in tenants}
        self.keys = {key.key_id: key for key in keys}
        self.held = {key_id: HeldKey.of(key) for key_id, key in self.keys.items()}
        self._index()

    def change(
        self,
        tenants: Iterable[access_pb2.Tenant],
        removed_tenants: Iterable[str],
        keys: Iterable[control_pb2.RoutedKey],
        removed_key_ids: Iterable[str],
    ) -> None:
        """Takes changes."""
        for name in removed_tenants:
            self.tenants.pop(name, None)
        for key_id in removed_key_ids:
            self.keys.pop(key_id, None)
            self.held.pop(key_id, None)
        self.tenants.update((tenant.name, tenant) for tenant in tenants)
        for key in keys:
            self.keys[key.key_id], self.held[key.key_id] = key, HeldKey.of(key)
        self._index()

    def identify(self, credentials: Credentials) -> Caller:
        """Who calls. An API key counts before a certificate.

        Raises:
            ChironError: CREDENTIALS_MISSING, KEY_INVALID, KEY_REVOKED, KEY_EXPIRED, TENANT_UNKNOWN;
                RETRY_ELSEWHERE where the table is outdated and the caller not in it;
                NOT_ALLOWED for an administrator's key, and a certificate that stands for several tenants.
        """
        if not credentials.api_key:
            return Caller(self._tenant(self._of_subjects(credentials.subjects)))
        key = self._key(credentials.api_key)
        caller = self._callers.get(key.key_id)
        if caller is None:
            if not key.tenant:
                raise ChironError(Reason.NOT_ALLOWED, "this API key is an administrator's: it has no tenant")
            caller = self._callers[key.key_id] = Caller(self._tenant(key.tenant), key)
        return caller

    def claimed(self, credentials: Credentials) -> str:
        """The tenant whose key, or whose certificate, is shown, unproved; empty: none."""
        if credentials.api_key:
            key = self.held.get(id_of(credentials.api_key))
            return key.tenant if key is not None else ""
        try:
            return self._of_subjects(credentials.subjects)
        except ChironError:
            return ""

    def is_admin(self, credentials: Credentials) -> bool:
        """Whether the caller is an administrator. Raises ChironError: KEY_INVALID, _REVOKED, _EXPIRED."""
        if credentials.api_key:
            return self._key(credentials.api_key).role == access_pb2.ACCESS_ROLE_ADMIN
        return credentials.has_role("admin")

    def _key(self, text: str) -> HeldKey:
        key = self.held.get(id_of(text))
        # A wrong secret under a known id and an unknown id are told apart by nobody.
        if key is None or not matches(text, key.digest):
            raise self._unknown(Reason.KEY_INVALID, _NO_KEY)
        if key.revoked:
            raise ChironError(Reason.KEY_REVOKED, f"API key {key.key_id} was revoked")
        if key.expires_s != math.inf and self._wall_clock() >= key.expires_s:
            raise expired(key.key_id, key.expires_s)
        return key

    def _tenant(self, name: str) -> access_pb2.Tenant:
        tenant = self.tenants.get(name)
        if tenant is None:
            raise self._unknown(Reason.TENANT_UNKNOWN, f"tenant {name!r} does not exist (any more)")
        return tenant

    def _unknown(self, reason: Reason, text: str) -> ChironError:
        if not self.outdated:
            return ChironError(reason, text)
        text = "this router has not heard a controller since it started, and does not know who calls yet"
        return ChironError(Reason.RETRY_ELSEWHERE, text, retry_after_s=_HEARD_SOON_S)

    def _of_subjects(self, subjects: tuple[str, ...]) -> str:
        """The one tenant of a certificate. Raises ChironError: CREDENTIALS_MISSING, NOT_ALLOWED."""
        # In the certificate's order, and each once: two names may stand for the same tenant.
        named = dict.fromkeys(filter(None, map(self._of_subject, subjects)))
        if not named:
            raise ChironError(Reason.CREDENTIALS_MISSING, self._nobody)
        if len(named) > 1:
            there = ", ".join(map(repr, named))
            raise ChironError(
                Reason.NOT_ALLOWED,
                f"this client certificate stands for {len(named)} tenants ({there}), and a call has one: use "
                "a certificate with the name of one tenant alone, or an API key",
            )
        return next(iter(named))

    def _of_subject(self, subject: str) -> str:
        """The tenant that a name stands for; empty: none."""
        if subject in self._by_subject:
            return self._by_subject[subject]
        return subject.removeprefix(TENANT_URI) if subject.startswith(TENANT_URI) else ""

    def _index(self) -> None:
        self._callers = {}
        self._by_subject = {
            subject: tenant.name for tenant in self.tenants.values() for subject in tenant.subjects
        }


def expired(key_id: str, expires_s: float) -> ChironError:
    """UNAUTHENTICATED for a key whose time is over; `expires_s` is by the wall clock, since the epoch."""
    when = datetime.fromtimestamp(expires_s, UTC)
    return ChironError(Reason.KEY_EXPIRED, f"API key {key_id} expired at {when:%Y-%m-%d %H:%M:%S} UTC")
