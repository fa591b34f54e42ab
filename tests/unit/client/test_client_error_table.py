"""Every status has a class, and details that servers send are read without their libraries."""

from __future__ import annotations

import inspect

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from chiron.client import ChironError, errors
from chiron.client.details import from_rpc
from chiron.client.errors import error_class
from chiron.rpc.errors import ChironError as ServerError
from chiron.rpc.errors import Reason

UNREMARKABLE = {Reason.NODE_NOT_FOUND, Reason.INSTANCE_NOT_FOUND, Reason.VERSION_NOT_FOUND}
"""Reasons of the admin API, which have no class of their own."""


def failed(code: grpc.StatusCode, *details: tuple[str, bytes], text: str = "text") -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(*details), details=text)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_has_a_class_of_its_own_kind(code):
    assert issubclass(error_class(code, ""), ChironError)
    assert error_class(code, "") is not ChironError


@pytest.mark.parametrize("reason", list(Reason), ids=lambda reason: reason.name)
def test_every_reason_of_the_servers_arrives_by_name(reason):
    server = ServerError(reason, "what happened", metadata={"k": "v"})
    error = from_rpc(failed(reason.code, ("grpc-status-details-bin", server.to_status().SerializeToString())))
    assert (error.reason, error.metadata) == (reason.name, {"k": "v"})


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (Reason.INVALID_ARGUMENT, errors.InvalidRequest),
        (Reason.MODEL_NOT_FOUND, errors.ModelNotFound),
        (Reason.ADAPTER_NOT_FOUND, errors.AdapterNotFound),
        (Reason.NODE_NOT_FOUND, errors.NotFound),
        (Reason.DUPLICATE_REQUEST, errors.AlreadyExists),
        (Reason.QUEUE_FULL, errors.QueueFull),
        (Reason.TOO_MANY_ABANDONED, errors.TurnedAway),
        (Reason.NO_INSTANCE, errors.NoInstance),
        (Reason.RETRY_ELSEWHERE, errors.RetryElsewhere),
        (Reason.ENGINE_DEAD, errors.RetryElsewhere),
        (Reason.STREAM_INTERRUPTED, errors.StreamInterrupted),
        (Reason.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (Reason.ABORTED, errors.Aborted),
        (Reason.CANNOT_RESUME, errors.CannotResume),
        (Reason.READER_STALLED, errors.ReaderStalled),
        (Reason.BUSY, errors.FailedPrecondition),
        (Reason.NOT_CONTROL_SOCKET, errors.PermissionDenied),
        (Reason.INTERNAL, errors.InternalError),
        (Reason.TICKET_EXPIRED, errors.TicketExpired),
        (Reason.TICKET_KEY_UNKNOWN, errors.TicketExpired),
        (Reason.TICKET_REQUIRED, errors.Unauthenticated),
        (Reason.TICKET_USED, errors.Unauthenticated),
        (Reason.TICKET_MISMATCH, errors.PermissionDenied),
    ],
)
def test_reasons_map_to_classes(reason, kind):
    assert error_class(reason.code, reason.name) is kind


def test_details_of_all_kinds_are_read():
    server = ServerError(
        Reason.QUEUE_FULL, "full", violations=[("slo.ttft_ms", "too tight")], retry_after_s=2.5
    )
    error = from_rpc(
        failed(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            ("grpc-status-details-bin", server.to_status().SerializeToString()),
            text="full",
        )
    )
    assert isinstance(error, errors.QueueFull)
    assert error.message == str(error) == "full"
    assert error.violations == (errors.Violation("slo.ttft_ms", "too tight"),)
    assert error.retry_after_s == 2.5


def test_a_broken_connection_carries_no_reason_and_is_told_by_its_status():
    error = from_rpc(failed(grpc.StatusCode.UNAVAILABLE))
    assert type(error) is errors.ConnectionLost
    assert error.reason == "UNAVAILABLE"


def test_details_that_cannot_be_read_do_not_hide_the_status():
    error = from_rpc(failed(grpc.StatusCode.NOT_FOUND, ("grpc-status-details-bin", b"\xff\xff")))
    assert type(error) is errors.NotFound


def test_every_error_class_is_documented_and_public():
    import chiron.client

    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ChironError)]
    assert len(kinds) > 20
    for kind in kinds:
        assert kind.__doc__
        assert getattr(chiron.client, kind.__name__) is kind
