"""Who calls: a tenant, and the key that stands for it with what it has of its own. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from chiron.auth.quotas import DEFAULT_MAX_TOKENS, metered_max_tokens
from chiron.auth.rights import (
    allows_key_model,
    allows_model,
    check_allowed,
    check_class,
    check_key_allowed,
    check_key_class,
)
from chiron.internal.v1 import control_pb2
from chiron.v1 import access_pb2, batch_pb2, types_pb2
from chiron.v1 import inference_pb2 as pb

_INTERACTIVE = types_pb2.REQUEST_CLASS_INTERACTIVE
_UNSET = types_pb2.REQUEST_CLASS_UNSPECIFIED


@dataclass(frozen=True, slots=True)
class HeldKey:
    """A key as a door knows it."""

    key_id: str
    digest: bytes
    """See chiron.auth.api_keys."""
    tenant: str
    """Empty for an administrator's."""
    role: access_pb2.AccessRole.ValueType
    revoked: bool
    expires_s: float
    """By the wall clock, since the epoch, in seconds; inf: never."""
    limits: access_pb2.KeyLimits | None
    """What it may ask for; None: all that its tenant may."""
    quota: access_pb2.Quota | None
    """Its own; None: only its tenant's counts."""
    defaults: access_pb2.KeyDefaults | None
    """For what requests leave open; None: it has none."""

    @classmethod
    def of(cls, routed: control_pb2.RoutedKey) -> HeldKey:
        """A key as the controller tells it."""
        terms = routed.terms
        limits = terms.limits
        limited = limits.models or limits.classes or limits.HasField("most_urgent_priority")
        metered = limits.requests_per_s or limits.tokens_per_min or limits.concurrent
        quota = access_pb2.Quota(
            requests_per_s=limits.requests_per_s,
            tokens_per_min=limits.tokens_per_min,
            concurrent=limits.concurrent,
        )
        return cls(
            routed.key_id,
            routed.digest,
            routed.tenant,
            routed.role,
            routed.revoked,
            terms.expires.ToMilliseconds() / 1e3 if terms.HasField("expires") else math.inf,
            limits if limited else None,
            quota if metered else None,
            terms.defaults if terms.HasField("defaults") else None,
        )


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever has proved to stand for a tenant."""

    tenant: access_pb2.Tenant
    key: HeldKey | None = None
    """What it has shown; None: a certificate, which has no limits and defaults of its own."""

    def check_allowed(
        self, model: str, request_class: types_pb2.RequestClass.ValueType, priority: int
    ) -> None:
        """Raises ChironError (NOT_ALLOWED) that names what the tenant, or the key, may not ask for."""
        check_allowed(self.tenant, model, request_class, priority)
        if self.key is not None and self.key.limits is not None:
            check_key_allowed(self.key.key_id, self.key.limits, model, request_class, priority)

    def may_use(self, model: str) -> bool:
        """Whether the model is one of its own."""
        limits = self.key.limits if self.key is not None else None
        return allows_model(self.tenant, model) and (limits is None or allows_key_model(limits, model))

    def check_class(self, request_class: types_pb2.RequestClass.ValueType, priority: int) -> None:
        """Raises ChironError (NOT_ALLOWED) for a class or a priority that is not its own to ask for."""
        check_class(self.tenant, request_class, priority)
        if self.key is not None and self.key.limits is not None:
            check_key_class(self.key.key_id, self.key.limits, request_class, priority)

    def fill(self, request: pb.GenerateRequest | pb.RouteRequest) -> None:
        """Puts the key's defaults where a request leaves open its class, its priority or its SLO.

        The SLO is a promise of the default class: a request of the other one gets nothing of it.
        """
        defaults = self.key.defaults if self.key is not None else None
        if defaults is None:
            return
        own = defaults.request_class or _INTERACTIVE
        if request.request_class == _UNSET:
            request.request_class = own
        if defaults.HasField("priority") and not request.HasField("priority"):
            request.priority = defaults.priority
        if defaults.HasField("slo") and request.request_class == own:
            said = types_pb2.Slo()
            said.CopyFrom(request.slo)
            request.slo.CopyFrom(defaults.slo)
            request.slo.MergeFrom(said)

    def fill_batch(self, header: batch_pb2.BatchHeader) -> None:
        """Likewise for a batch: its priority, and its deadline where the key's class is batch."""
        defaults = self.key.defaults if self.key is not None else None
        if defaults is None:
            return
        if defaults.HasField("priority") and not header.HasField("priority"):
            header.priority = defaults.priority
        if not header.deadline_s and defaults.request_class == types_pb2.REQUEST_CLASS_BATCH:
            header.deadline_s = defaults.slo.deadline_s

    def max_tokens(self, asked: int) -> int:
        """Most output tokens that a request may have that asks for so many; 0: as the model has room for."""
        key, quota = self.key, self.tenant.quota
        if asked or key is None:
            return metered_max_tokens(quota, asked)
        if key.defaults is not None and key.defaults.max_tokens:
            return key.defaults.max_tokens
        if key.quota is not None and key.quota.tokens_per_min:
            return quota.default_max_tokens or DEFAULT_MAX_TOKENS
        return metered_max_tokens(quota, asked)

    @property
    def metered(self) -> bool:
        """Whether its tokens count."""
        if self.tenant.quota.tokens_per_min:
            return True
        return self.key is not None and self.key.quota is not None and self.key.quota.tokens_per_min > 0
