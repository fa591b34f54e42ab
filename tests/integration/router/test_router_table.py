"""The router lives on the controller's table, and on its last one while the controller is away."""

from __future__ import annotations

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chiron.internal.v1 import control_pb2
from chiron.rpc.errors import reason_of
from chiron.rpc.servers import open_channel
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import inference_pb2_grpc, types_pb2
from services.router.app import Router
from services.router.config import RouterConfig
from tests.support.fake_router_controller import FakeRouterController, routed_instance
from tests.support.wait import eventually


def route(**fields: object) -> pb.RouteRequest:
    return pb.RouteRequest(**{"model": "m", **fields})


async def refusal(router, message: pb.RouteRequest) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await router.stub.Route(message)
    return caught.value


async def serving(channel) -> bool:
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    return answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_an_unknown_model_is_answered_with_those_there_are(start_router, controller) -> None:
    controller.add("other")
    controller.add("m")
    router = await start_router()
    error = await refusal(router, route(model="nobody"))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert reason_of(error) == "MODEL_NOT_FOUND"
    assert error.details() == "unknown model 'nobody': models are m, other"


async def test_an_unknown_adapter_is_answered_with_those_there_are(start_router, controller) -> None:
    controller.add("m", adapters=["french", "legal"])
    router = await start_router()
    error = await refusal(router, route(adapter="latin"))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details() == "model 'm' has no adapter 'latin': it has french, legal"


async def test_a_failed_model_is_refused_with_the_reason(start_router, controller) -> None:
    controller.add("m", failed=True, reason="weights not found: /models/m")
    router = await start_router()
    error = await refusal(router, route())
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert reason_of(error) == "NO_INSTANCE"
    assert "weights not found: /models/m" in (error.details() or "")


async def test_those_who_wait_learn_that_the_model_failed(start_router, controller) -> None:
    controller.add("m")
    router = await start_router()
    call = router.stub.Route(route())
    await router.queued(1)
    controller.send(models=[control_pb2.RoutedModel(name="m", failed=True, reason="out of memory")])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert "out of memory" in (caught.value.details() or "")


async def test_those_who_wait_learn_that_the_model_was_deleted(start_router, controller) -> None:
    controller.add("m")
    router = await start_router()
    call = router.stub.Route(route())
    await router.queued(1)
    controller.send(removed_models=["m"])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert reason_of(caught.value) == "MODEL_NOT_FOUND"


async def test_deltas_bring_and_take_instances(start_worker, start_router, controller) -> None:
    first, second = await start_worker("a"), await start_worker("b")
    router = await start_router(first)
    controller.send(instances=[routed_instance("m", second)], removed_instance_ids=["a"])
    await router.sees(second)
    assert (await router.stub.Route(route())).instance_id == "b"


async def test_a_missed_epoch_makes_it_ask_for_a_new_table(start_worker, start_router, controller) -> None:
    router = await start_router(await start_worker("a"))
    assert (await controller.hellos.get()).epoch == 0
    controller.skip_epoch()
    controller.add("added")
    controller.send()
    assert (await controller.hellos.get()).epoch == 1
    await eventually(lambda: "added" in router.core.table.models)


async def test_it_serves_on_while_the_controller_is_away(start_worker, start_router, controller) -> None:
    router = await start_router(await start_worker("a"))
    await controller.stop()
    assert (await router.stub.Route(route())).instance_id == "a"


async def test_a_new_controller_that_knows_nothing_takes_no_serving_instance_away(
    start_worker, start_router, controller
) -> None:
    worker = await start_worker("a")
    router = await start_router(worker)
    address = controller.address
    await controller.stop()
    successor = await FakeRouterController(term=2).start(address)
    await successor.hellos.get()
    await eventually(lambda: router.core.table.term == 2)
    assert (await router.stub.Route(route())).instance_id == "a"
    worker.load.state = types_pb2.INSTANCE_STATE_DRAINING
    worker.publish()
    await eventually(lambda: "a" not in router.core.table.instances)
    await successor.stop()


async def test_it_reports_demand_outcomes_and_queues(start_worker, start_router, controller) -> None:
    worker = await start_worker("a", batch_size=1)
    controller.add(
        "m",
        [worker],
        slo_defaults={"interactive": types_pb2.Slo(ttft_ms=60_000)},
    )
    router = await start_router(worker, worker_queue=0, queue_limit=1, report_interval_s=0.05)
    call = router.stub.Generate(pb.GenerateRequest(model="m", prompt="x"))
    answered = await worker.calls.get()
    waiting = router.stub.Route(route(request_class=types_pb2.REQUEST_CLASS_BATCH))
    await router.queued(0, 1)
    await refusal(router, route(request_class=types_pb2.REQUEST_CLASS_BATCH))
    answered.text("hi")
    answered.finish()
    async for _ in call:
        pass
    await waiting
    seen = types_pb2.ClassCounts()
    totals = {"arrived": [0, 0], "finished": [0, 0], "refused": [0, 0], "ttft_met": 0, "ttft_seen": 0}
    queued = []
    sequence = 0
    while totals["arrived"] != [1, 2] or totals["finished"] != [1, 0] or not queued or queued[-1] != 0:
        report = await controller.reports.get()
        sequence += 1
        assert report.sequence == sequence
        for demand in report.demand:
            for name in ("arrived", "finished", "refused"):
                seen = getattr(demand, name)
                totals[name][0] += seen.interactive
                totals[name][1] += seen.batch
            totals["ttft_met"] += demand.ttft_met
            totals["ttft_seen"] += demand.ttft_seen
            queued.append(demand.queued.batch)
    assert totals == {
        "arrived": [1, 2],
        "finished": [1, 0],
        "refused": [0, 1],
        "ttft_met": 1,
        "ttft_seen": 1,
    }


async def test_a_lookaside_request_counts_as_finished_when_its_worker_says_so(
    start_worker, start_router, controller
) -> None:
    worker = await start_worker("a")
    router = await start_router(worker, report_interval_s=0.05)
    await router.stub.Route(route(request_id="mine"))
    worker.publish(started=["mine", "anothers"])
    worker.publish(finished=["mine", "anothers"])
    finished = 0
    while not finished:
        report = await controller.reports.get()
        finished = sum(demand.finished.interactive for demand in report.demand)
    assert finished == 1


async def test_without_any_table_it_is_not_ready_and_says_so() -> None:
    router = Router(RouterConfig(listen="127.0.0.1:0", controller=("127.0.0.1:1",), drain_timeout_s=0.0))
    address = await router.start()
    async with open_channel(address) as channel:
        assert not await serving(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await inference_pb2_grpc.InferenceServiceStub(channel).Route(route())
        # Another router may have a table.
        assert reason_of(caught.value) == "RETRY_ELSEWHERE"
    await router.stop()


async def test_it_finds_a_controller_that_comes_later(start_router, controller) -> None:
    address = controller.address
    await controller.stop()
    router = Router(RouterConfig(listen="127.0.0.1:0", controller=(address,), drain_timeout_s=0.0))
    async with open_channel(await router.start()) as channel:
        late = await FakeRouterController().start(address)
        await eventually(lambda: serving(channel))
        await late.stop()
    await router.stop()


async def test_with_a_table_it_is_ready(start_worker, start_router) -> None:
    router = await start_router(await start_worker("a"))
    await eventually(lambda: serving(router.channel))


async def test_bad_fields_of_generate_are_named(start_worker, start_router) -> None:
    router = await start_router(await start_worker("a"))
    message = pb.GenerateRequest(model="m", sampling=pb.SamplingParams(max_tokens=0, top_p=1.5))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in router.stub.Generate(message):
            pass
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    for field in ("input", "sampling.max_tokens", "sampling.top_p"):
        assert field in (caught.value.details() or "")


async def test_bytes_that_are_no_request_are_an_invalid_argument(start_worker, start_router) -> None:
    router = await start_router(await start_worker("a"))
    raw = router.channel.unary_stream("/chiron.v1.InferenceService/Generate")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in raw(b"\xff\xff\xff"):
            pass
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_message_over_the_size_limit_is_refused(start_worker, start_router) -> None:
    router = await start_router(await start_worker("a"))
    async with grpc.aio.insecure_channel(router.address) as channel:
        raw = channel.unary_stream("/chiron.v1.InferenceService/Generate")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in raw(bytes(17 * 1024 * 1024)):
                pass
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_load_report_that_cannot_be_read_makes_its_worker_alone_unusable(
    start_worker, start_router, caplog: pytest.LogCaptureFixture
) -> None:
    odd, sound = await start_worker("a"), await start_worker("b")
    router = await start_router(odd, sound)
    subscriptions = odd.subscriptions
    odd.load.role = 99
    odd.publish()
    await eventually(lambda: not router.core._instances["a"].usable)
    assert (await router.stub.Route(route())).instance_id == "b"
    odd.load.role = types_pb2.ROLE_MIXED
    await router.sees(odd)
    assert odd.subscriptions > subscriptions
    assert "99 is not a valid Role" in caplog.text
