"""Puts the controller together and serves it."""

from __future__ import annotations

import asyncio

from chiron.config import ConfigError
from chiron.internal.v1 import control_pb2_grpc
from chiron.rpc.servers import Server
from chiron.service import announce
from chiron.store import RefusedError, UnavailableError
from chiron.store.etcd import SchemaError
from chiron.v1 import cluster_pb2_grpc
from services.global_controller.config import ControllerConfig
from services.global_controller.control_servicer import ControlServicer
from services.global_controller.controller import Controller
from services.global_controller.servicer import ClusterServicer
from services.global_controller.store_config import open_store

_SERVICES = ("chiron.v1.ClusterService", "chiron.internal.v1.ControlService")
_STOP_GRACE_S = 1.0


async def serve(config: ControllerConfig, stop: asyncio.Event) -> None:
    """Serves until `stop` is set.

    Raises BindError, ConfigError when the store cannot be used, and FencedError when another controller takes
    over.
    """
    server = Server(_SERVICES)
    host = config.listen.rpartition(":")[0]
    port = server.bind(config.listen)
    store = open_store(config.store, config.decisions_kept)
    controller = Controller(config, store)
    cluster_pb2_grpc.add_ClusterServiceServicer_to_server(ClusterServicer(controller), server.grpc)
    control_pb2_grpc.add_ControlServiceServicer_to_server(ControlServicer(controller), server.grpc)
    try:
        await controller.start()
    except (UnavailableError, RefusedError, SchemaError) as error:
        await store.close()
        raise ConfigError(f"[controller] store: {error}") from error
    running = asyncio.create_task(controller.run())
    await server.start()
    await server.set_serving(True)
    announce("controller", address=f"{host}:{port}", term=controller.term)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
    finally:
        stopping.cancel()
        controller.close()
        await server.stop(_STOP_GRACE_S)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await store.close()
