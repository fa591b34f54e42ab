"""`/metrics`: what it shows, and to whom."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from chiron.auth.api_keys import NewKey
from chiron.auth.settings import AuthSettings
from chiron.internal.v1 import control_pb2
from chiron.rpc.errors import ChironError
from chiron.v1 import access_pb2
from chiron.v1 import inference_pb2 as pb
from services.router.http.settings import HttpSettings
from tests.support.http_door import ANY, ask, get, post
from tests.support.wait import eventually

Sample = tuple[str, tuple[tuple[str, str], ...]]


async def scraped(url: str, **headers: str) -> dict[Sample, float]:
    answer = await get(url, "/metrics", **headers)
    assert answer.status == 200
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }


async def test_requests_are_counted_by_route_and_status(start_worker, start_router) -> None:
    url = (await start_router(await start_worker("a"), http=ANY)).router.http_url
    for path in ("/v1/models", "/v1/models", "/v1/models/none", "/one", "/two"):
        await get(url, path)
    seen = await scraped(url)

    def count(endpoint: str, status: str) -> float:
        labels = (("class", ""), ("endpoint", endpoint), ("model", ""), ("status", status))
        return seen["chiron_http_requests_total", labels]

    assert count("/v1/models", "200") == 2
    assert count("/v1/models/{name:path}", "404") == 1
    # Whatever is asked for: paths that lead nowhere make no labels.
    assert count("other", "404") == 2
    refused = (("code", "model_not_found"), ("endpoint", "/v1/models/{name:path}"))
    assert seen["chiron_http_errors_total", refused] == 1


@pytest.mark.parametrize("streamed", [False, True])
async def test_what_is_generated_is_counted_by_model_and_class(
    start_worker, start_router, streamed: bool
) -> None:
    worker = await start_worker("a")
    url = (await start_router(worker, http=ANY)).router.http_url
    asked = {"model": "m", "prompt": ["one", "two"], "stream": streamed}
    asking = asyncio.create_task(post(url, "/v1/completions", asked))
    for _ in range(2):
        delta = pb.OutputDelta(
            token_ids=[1, 2],
            text="so",
            finish_reason=pb.FINISH_REASON_STOP,
            usage=pb.Usage(prompt_tokens=7, cached_prompt_tokens=3, completion_tokens=2),
        )
        call = await worker.calls.get()
        call.send(pb.GenerateResponse(deltas=[delta]))
        call.finish()
    assert (await asking).status == 200
    assert (await post(url, "/v1/completions", {**asked, "model": "none"})).status == 404
    seen = await scraped(url)
    about = (("class", "interactive"), ("model", "m"))

    def tokens(kind: str) -> float:
        return seen["chiron_http_tokens_total", tuple(sorted((*about, ("kind", kind))))]

    assert [tokens(kind) for kind in ("prompt", "cached", "completion")] == [14, 6, 4]
    assert seen["chiron_http_ttft_seconds_count", about] == 1
    endpoint = ("endpoint", "/v1/completions")
    labels = tuple(sorted((*about, endpoint, ("status", "200"))))
    assert seen["chiron_http_requests_total", labels] == 1
    # A model that nobody applied is no label.
    labels = tuple(sorted((("class", ""), ("model", ""), endpoint, ("status", "404"))))
    assert seen["chiron_http_requests_total", labels] == 1
    assert seen["chiron_http_errors_total", (("code", "model_not_found"), endpoint)] == 1


async def test_a_client_that_leaves_before_its_answer_is_counted_so(start_worker, start_router) -> None:
    worker = await start_worker("a")
    router = await start_router(worker, http=ANY)
    url = router.router.http_url
    asking = asyncio.create_task(post(url, "/v1/completions", {"model": "m", "prompt": "one"}))
    call = await worker.calls.get()
    asking.cancel()
    await call.ended.wait()
    await eventually(router.router._serving.under_way.idle.is_set)
    labels = {"class": "interactive", "endpoint": "/v1/completions", "model": "m", "status": "499"}
    assert (await scraped(url))["chiron_http_requests_total", tuple(sorted(labels.items()))] == 1


def outcomes(seen: dict[Sample, float]) -> dict[str, float]:
    """Interactive requests of model `m` by what became of them."""
    found = {}
    for (name, labels), value in seen.items():
        told = dict(labels)
        if name == "chiron_router_requests_total" and (told["model"], told["class"]) == ("m", "interactive"):
            found[told["outcome"]] = value
    return found


@pytest.mark.parametrize("at", ["begun", "waiting"])
@pytest.mark.parametrize("door", ["http", "grpc"])
async def test_clients_that_leave_are_an_outcome_of_their_own(
    start_worker, start_router, door: str, at: str
) -> None:
    worker = await start_worker("a", batch_size=1)
    router = await start_router(worker, http=ANY, worker_queue=0)
    url = router.router.http_url
    served = asyncio.create_task(post(url, "/v1/completions", {"model": "m", "prompt": "one"}))
    call = await worker.calls.get()

    async def read() -> None:
        stream = router.stub.Generate(pb.GenerateRequest(model="m", prompt="x"))
        async for _ in stream:
            pass

    def leaves() -> asyncio.Task[object]:
        asked = {"model": "m", "prompt": "two"}
        return asyncio.create_task(post(url, "/v1/completions", asked) if door == "http" else read())

    if at == "waiting":
        leaving = leaves()
        await router.queued(1)
        leaving.cancel()
        await router.queued(0)
    usage = pb.Usage(prompt_tokens=1, completion_tokens=1)
    last = pb.OutputDelta(token_ids=[1], text="ok", finish_reason=pb.FINISH_REASON_STOP, usage=usage)
    call.send(pb.GenerateResponse(deltas=[last]))
    call.finish()
    assert (await served).status == 200
    if at == "begun":
        leaving = leaves()
        call = await worker.calls.get()
        call.text("beg")
        leaving.cancel()
        await call.ended.wait()
    await eventually(router.router._serving.under_way.idle.is_set)
    assert outcomes(await scraped(url)) == {"arrived": 2, "finished": 1, "cancelled": 1}


async def test_prompts_beside_one_that_fails_are_cancelled(start_worker, start_router) -> None:
    worker = await start_worker("a")
    url = (await start_router(worker, http=ANY)).router.http_url
    asking = asyncio.create_task(post(url, "/v1/completions", {"model": "m", "prompt": ["a", "b", "c"]}))
    calls = [await worker.calls.get() for _ in range(3)]
    calls[1].fail(ChironError.invalid([("prompt", "cannot be read")]))
    assert (await asking).status == 400
    assert outcomes(await scraped(url)) == {"arrived": 3, "failed": 1, "cancelled": 2}


async def test_a_request_under_way_is_a_call_and_the_scrape_is_none(start_worker, start_router) -> None:
    worker = await start_worker("a")
    url = (await start_router(worker, http=ANY)).router.http_url
    asking = asyncio.create_task(post(url, "/v1/completions", {"model": "m", "prompt": "one"}))
    call = await worker.calls.get()
    assert (await scraped(url))["chiron_router_calls", ()] == 1
    call.text("hi")
    call.finish()
    asking.cancel()


@pytest.mark.parametrize("body", [b"{", b"[1]"])
async def test_malformed_json_has_a_code_of_its_own(start_worker, start_router, body: bytes) -> None:
    url = (await start_router(await start_worker("a"), http=ANY)).router.http_url
    answer = await post(url, "/v1/completions", body)
    assert (answer.status, answer.error["code"]) == (400, "invalid_json")
    labels = (("code", "invalid_json"), ("endpoint", "/v1/completions"))
    assert (await scraped(url))["chiron_http_errors_total", labels] == 1


async def test_requests_at_the_other_door_are_counted_too(start_worker, start_router) -> None:
    worker = await start_worker("a")
    router = await start_router(worker, http=ANY)
    call = router.stub.Generate(pb.GenerateRequest(model="m", prompt="x"))
    answered = await worker.calls.get()
    answered.text("hi")
    answered.finish()
    async for _ in call:
        pass
    seen = await scraped(router.router.http_url)
    for outcome in ("arrived", "finished"):
        labels = (("class", "interactive"), ("model", "m"), ("outcome", outcome))
        assert seen["chiron_router_requests_total", labels] == 1


@pytest.mark.parametrize(
    ("accepted", "begins"),
    [
        ("application/openmetrics-text;version=1.0.0,text/plain;q=0.3", "application/openmetrics-text"),
        ("*/*", "text/plain"),
    ],
)
async def test_prometheus_gets_the_format_that_it_asks_for(
    start_worker, start_router, accepted: str, begins: str
) -> None:
    url = (await start_router(await start_worker("a"), http=ANY)).router.http_url
    answer = await get(url, "/metrics", accept=accepted)
    assert answer.headers["content-type"].startswith(begins)
    assert answer.body.endswith(b"# EOF\n") == (begins == "application/openmetrics-text")


async def test_connections_that_ask_for_nothing_are_counted(start_worker, start_router) -> None:
    url = (await start_router(await start_worker("a"), http=ANY)).router.http_url
    await ask(url, "this is no request")
    seen = await scraped(url)
    assert seen["chiron_http_refused_connections_total", (("code", "bad_request"),)] == 1
    assert seen["chiron_http_connections", ()] >= 1


async def test_the_router_s_instances_and_queues_are_gauges(start_worker, start_router) -> None:
    workers = [await start_worker("a"), await start_worker("b")]
    url = (await start_router(*workers, http=ANY)).router.http_url
    seen = await scraped(url)
    assert seen["chiron_router_instances", (("model", "m"), ("state", "ready"))] == 2
    assert seen["chiron_router_queued_requests", (("class", "interactive"), ("model", "m"))] == 0
    assert seen["chiron_router_calls", ()] == 0
    assert any(name == "process_cpu_seconds_total" for name, _ in seen)


@pytest.mark.parametrize("open_metrics", [False, True])
async def test_where_callers_are_known_metrics_are_for_administrators(
    start_worker, start_router, controller, open_metrics: bool
) -> None:
    tenant, admin = NewKey.draw(), NewKey.draw()
    controller.table.tenants.append(access_pb2.Tenant(name="acme", models=["*"]))
    controller.table.keys.extend(
        [
            control_pb2.RoutedKey(key_id=tenant.key_id, digest=tenant.digest, tenant="acme"),
            control_pb2.RoutedKey(
                key_id=admin.key_id, digest=admin.digest, role=access_pb2.ACCESS_ROLE_ADMIN
            ),
        ]
    )
    settings = HttpSettings(listen="127.0.0.1:0", open_metrics=open_metrics)
    router = await start_router(await start_worker("a"), http=settings, auth=AuthSettings(require=True))
    url = router.router.http_url
    assert await scraped(url, authorization=f"Bearer {admin.text}")
    if open_metrics:
        assert await scraped(url)
        return
    answer = await get(url, "/metrics", authorization=f"Bearer {tenant.text}")
    assert (answer.status, answer.error["code"]) == (403, "permission_denied")
    answer = await get(url, "/metrics")
    assert (answer.status, answer.error["code"]) == (401, "missing_api_key")
    assert "header" in answer.error["message"]
    wrong = await get(url, "/metrics", authorization="Bearer ck_nobody")
    assert (wrong.status, wrong.error["code"]) == (401, "invalid_api_key")
