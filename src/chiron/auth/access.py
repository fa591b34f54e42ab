"""Who a caller is and what its tenant may ask for: one layer for every door. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from chiron.auth.api_keys import id_of, matches
from chiron.auth.credentials import TENANT_URI, Credentials
from chiron.internal.v1 import control_pb2
from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import access_pb2, types_pb2

EVERY_MODEL = "*"
_NOBODY = (
    "this cluster asks who calls: send an API key as `authorization: Bearer` metadata, or present a client "
    "certificate of a tenant"
)


class AccessTable:
    """Tenants, and the keys and certificate subjects that stand for them."""

    def __init__(self) -> None:
        self.tenants: dict[str, access_pb2.Tenant] = {}
        self.keys: dict[str, control_pb2.RoutedKey] = {}
        self._by_subject: dict[str, str] = {}

    def replace(self, tenants: Iterable[access_pb2.Tenant], keys: Iterable[control_pb2.RoutedKey]) -> None:
        """Takes a whole table."""
        self.tenants = {tenant.name: tenant for tenant in tenants}
        self.keys = {key.key_id: key for key in keys}
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
        self.tenants.update((tenant.name, tenant) for tenant in tenants)
        self.keys.update((key.key_id, key) for key in keys)
        self._index()

    def identify(self, credentials: Credentials) -> access_pb2.Tenant:
        """The caller's tenant. An API key counts before a certificate.

        Raises:
            ChironError: CREDENTIALS_MISSING, KEY_INVALID, KEY_REVOKED, TENANT_UNKNOWN, NOT_ALLOWED.
        """
        if credentials.api_key:
            key = self._key(credentials.api_key)
            if not key.tenant:
                raise ChironError(Reason.NOT_ALLOWED, "this API key is an administrator's: it has no tenant")
            name = key.tenant
        else:
            name = self._of_subjects(credentials.subjects)
        tenant = self.tenants.get(name)
        if tenant is None:
            raise ChironError(Reason.TENANT_UNKNOWN, f"tenant {name!r} does not exist (any more)")
        return tenant

    def claimed(self, credentials: Credentials) -> str:
        """The tenant whose key, or whose certificate, is shown, unproved; empty: none."""
        if credentials.api_key:
            key = self.keys.get(id_of(credentials.api_key))
            return key.tenant if key is not None else ""
        try:
            return self._of_subjects(credentials.subjects)
        except ChironError:
            return ""

    def is_admin(self, credentials: Credentials) -> bool:
        """Whether the caller is an administrator. Raises ChironError: KEY_INVALID, KEY_REVOKED."""
        if credentials.api_key:
            return self._key(credentials.api_key).role == access_pb2.ACCESS_ROLE_ADMIN
        return credentials.has_role("admin")

    def _key(self, text: str) -> control_pb2.RoutedKey:
        key = self.keys.get(id_of(text))
        # A wrong secret under a known id and an unknown id are told apart by nobody.
        if key is None or not matches(text, key.digest):
            raise ChironError(Reason.KEY_INVALID, "this API key is not one of this cluster's")
        if key.revoked:
            raise ChironError(Reason.KEY_REVOKED, f"API key {key.key_id} was revoked")
        return key

    def _of_subjects(self, subjects: tuple[str, ...]) -> str:
        for subject in subjects:
            if subject in self._by_subject:
                return self._by_subject[subject]
        for subject in subjects:
            if subject.startswith(TENANT_URI):
                return subject.removeprefix(TENANT_URI)
        raise ChironError(Reason.CREDENTIALS_MISSING, _NOBODY)

    def _index(self) -> None:
        self._by_subject = {
            subject: tenant.name for tenant in self.tenants.values() for subject in tenant.subjects
        }


def check_allowed(
    tenant: access_pb2.Tenant, model: str, request_class: types_pb2.RequestClass.ValueType, priority: int
) -> None:
    """Raises ChironError (NOT_ALLOWED) that names what the tenant may not ask for, and what it may."""
    if EVERY_MODEL not in tenant.models and model not in tenant.models:
        there = ", ".join(sorted(tenant.models)) or "none"
        _deny(tenant, f"model {model!r}", f"its models are: {there}")
    check_class(tenant, request_class, priority)


def check_class(
    tenant: access_pb2.Tenant, request_class: types_pb2.RequestClass.ValueType, priority: int
) -> None:
    """Raises ChironError (NOT_ALLOWED) for a class or a priority that the tenant may not ask for."""
    if request_class == types_pb2.REQUEST_CLASS_UNSPECIFIED:
        request_class = types_pb2.REQUEST_CLASS_INTERACTIVE
    if tenant.classes and request_class not in tenant.classes:
        names = ", ".join(map(class_name, tenant.classes))
        _deny(tenant, f"class {class_name(request_class)}", f"its classes are: {names}")
    if tenant.HasField("most_urgent_priority") and priority < tenant.most_urgent_priority:
        _deny(tenant, f"priority {priority}", f"its most urgent is {tenant.most_urgent_priority}")


def class_name(value: types_pb2.RequestClass.ValueType) -> str:
    """`interactive` or `batch`."""
    return types_pb2.RequestClass.Name(value).removeprefix("REQUEST_CLASS_").lower()


def _deny(tenant: access_pb2.Tenant, what: str, may: str) -> None:
    raise ChironError(Reason.NOT_ALLOWED, f"tenant {tenant.name!r} may not use {what}: {may}")
