"""The HTTP door of a router: who gets in, what is there, and errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

import openai
import pytest

from services.router.http.settings import HttpSettings
from tests.support.http_door import ANY, ask, get, openai_at, post


async def test_the_door_says_whether_the_router_serves(start_worker, start_router) -> None:
    router = await start_router(await start_worker("a"), http=ANY)
    answer = await get(router.router.http_url, "/health")
    assert (answer.status, answer.json()) == (200, {"status": "ok"})
    router.router._serving.refuse("this router is shutting down")
    answer = await get(router.router.http_url, "/health")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert answer.json() == {"status": "shutting down"}


async def test_models_and_their_adapters_are_listed(start_worker, start_router, controller) -> None:
    worker = await start_worker("a")
    controller.add("m", [worker], adapters=["sql", "law"])
    router = await start_router(worker, http=ANY)
    async with openai_at(router.router.http_url) as client:
        listed = (await client.models.list()).data
        assert [model.id for model in listed] == ["m", "m:law", "m:sql"]
        assert [getattr(model, "parent", None) for model in listed] == [None, "m", "m"]
        assert (await client.models.retrieve("m:sql")).id == "m:sql"
        with pytest.raises(openai.NotFoundError) as raised:
            await client.models.retrieve("other")
        assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


async def test_each_answer_has_a_name_and_says_how_long_it_took(start_worker, start_router) -> None:
    router = await start_router(await start_worker("a"), http=ANY)
    async with openai_at(router.router.http_url) as client:
        first, second = await client.models.list(), await client.models.list()
        assert first._request_id
        assert first._request_id != second._request_id
    refused = await get(router.router.http_url, "/nothing")
    assert refused.headers["x-request-id"].startswith("req-")
    assert int(refused.headers["openai-processing-ms"]) >= 0


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("GET", "/v1/models/", 404, "model_not_found"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/v1/embeddings", 404, "unsupported_endpoint"),
        ("POST", "/v1/images/generations", 404, "unsupported_endpoint"),
    ],
)
async def test_what_is_not_there_is_refused_in_openai_s_shape(
    start_worker, start_router, method: str, path: str, status: int, code: str
) -> None:
    router = await start_router(await start_worker("a"), http=ANY)
    answer = await ask(router.router.http_url, f"{method} {path} HTTP/1.1", "content-length: 0")
    assert (answer.status, answer.error["code"]) == (status, code)
    assert answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/files", "GET, HEAD, POST"),
        ("/v1/files/file-1", "DELETE, GET, HEAD"),
        ("/v1/chat/completions", "POST"),
    ],
)
async def test_a_wrong_method_is_told_all_right_ones(
    start_worker, start_router, path: str, allowed: str
) -> None:
    router = await start_router(await start_worker("a"), http=ANY)
    answer = await ask(router.router.http_url, f"PUT {path} HTTP/1.1", "content-length: 0")
    assert (answer.status, answer.headers["allow"]) == (405, allowed)
    assert answer.error["message"].endswith(f": {allowed}")


async def test_while_it_drains_the_door_sends_callers_elsewhere(start_worker, start_router) -> None:
    router = await start_router(await start_worker("a"), http=ANY)
    router.router._serving.refuse("this router is shutting down")
    answer = await get(router.router.http_url, "/v1/models")
    assert (answer.status, answer.error["code"]) == (503, "unavailable")
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["connection"] == "close"


async def test_pages_of_other_origins_are_let_in_only_where_configured(start_worker, start_router) -> None:
    worker = await start_worker("a")
    router = await start_router(worker, http=ANY)
    assert (
        "access-control-allow-origin"
        not in (await get(router.router.http_url, "/v1/models", origin="https://chat.example")).headers
    )
    open_door = HttpSettings(listen="127.0.0.1:0", cors_origins=("https://chat.example",))
    url = (await start_router(worker, http=open_door)).router.http_url
    asked = await get(url, "/v1/nothing", origin="https://chat.example")
    assert asked.headers["access-control-allow-origin"] == "https://chat.example"
    other = await get(url, "/v1/models", origin="https://elsewhere.example")
    assert "access-control-allow-origin" not in other.headers


async def test_a_browser_that_asks_first_is_told_what_it_may_send(start_worker, start_router) -> None:
    open_door = HttpSettings(listen="127.0.0.1:0", cors_origins=("https://chat.example",))
    url = (await start_router(await start_worker("a"), http=open_door)).router.http_url
    answer = await ask(
        url,
        "OPTIONS /v1/chat/completions HTTP/1.1",
        "origin: https://chat.example",
        "access-control-request-method: POST",
        "access-control-request-headers: authorization,content-type,x-chiron-ttft-ms",
    )
    assert answer.status == 200
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "x-chiron-ttft-ms" in answer.headers["access-control-allow-headers"]


async def test_a_page_may_read_of_a_defect_too(
    start_worker, start_router, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_door = HttpSettings(listen="127.0.0.1:0", cors_origins=("https://chat.example",))
    router = await start_router(await start_worker("a"), http=open_door)

    async def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(router.router._serving.proxy, "run", fail)
    asked = {"model": "m", "prompt": "x"}
    answer = await post(router.router.http_url, "/v1/completions", asked, origin="https://chat.example")
    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    assert answer.headers["access-control-allow-origin"] == "https://chat.example"
    assert "x-request-id" in answer.headers["access-control-expose-headers"]


async def test_a_port_that_is_taken_is_told_at_the_start(tmp_path: Path, controller) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.router", "--set", "listen=127.0.0.1:0"),
            *("--set", f"controller={controller.address}", "--set", f"http.listen={address}"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
    assert (process.returncode, out) == (2, b"")
    assert err.decode().splitlines()[-1] == f"error: cannot listen on {address}: is the port in use?"


async def test_two_routers_of_one_host_take_a_free_port_each(start_worker, start_router) -> None:
    worker = await start_worker("a")
    urls = [(await start_router(worker, http=ANY)).router.http_url for _ in range(2)]
    assert len(set(urls)) == 2
    for url in urls:
        assert (await get(url, "/health")).status == 200


async def test_a_router_has_no_http_door_unless_it_is_told_to(start_worker, start_router) -> None:
    assert (await start_router(await start_worker("a"))).router.http_url == ""


async def test_a_body_that_nobody_reads_does_not_keep_the_answer_from_its_client(
    start_worker, start_router
) -> None:
    router = await start_router(await start_worker("a"), http=ANY)
    answer = await post(router.router.http_url, "/v1/embeddings", b"x" * 2_000_000)
    assert (answer.status, answer.headers["connection"]) == (404, "close")
