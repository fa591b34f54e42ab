"""Puts the controller together and serves it."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import time

from chiron.auth.settings import off_notice
from chiron.config import ConfigError
from chiron.internal.v1 import control_pb2_grpc
from chiron.policy.custom import PolicyError
from chiron.policy.fleet import UnknownAutoscalerError, load_autoscaler
from chiron.rpc.servers import Server
from chiron.service import announce
from chiron.store import RefusedError, UnavailableError
from chiron.store.etcd import EtcdStore, RestoredError, SchemaError
from chiron.v1 import access_pb2_grpc, cluster_pb2_grpc
from services.global_controller.access_servicer import AccessServicer
from services.global_controller.autoscaler_config import OFF
from services.global_controller.candidacy import Candidacy
from services.global_controller.config import ControllerConfig
from services.global_controller.control_servicer import ControlServicer
from services.global_controller.controller import Controller
from services.global_controller.gate import Gate
from services.global_controller.guard import Doorkeeper
from services.global_controller.seat import Seat
from services.global_controller.servicer import ClusterServicer
from services.global_controller.store_config import open_store
from services.global_controller.store_health import StoreHealth

SERVICES = ("chiron.v1.ClusterService", "chiron.v1.AccessService", "chiron.internal.v1.ControlService")
LEADER_HEALTH = "chiron.leader"
"""Name under which the health service says SERVING in the controller that leads, and in no other."""
_STOP_GRACE_S = 1.0
_log = logging.getLogger(__name__)


async def serve(config: ControllerConfig, stop: asyncio.Event) -> None:
    """Serves until `stop` is set.

    Raises BindError, ConfigError when the store refuses this controller, and FencedError when another one
    takes over the memory store's term.
    """
    _check_policy(config)
    store = open_store(config.store, config.decisions_kept)
    health = StoreHealth(config.store.kind.value, time.monotonic)
    seat = Seat(config.advertise, health)
    doorkeeper = Doorkeeper(config.auth, lambda: seat.leading().snapshot)
    server = Server(SERVICES, interceptors=[Gate(seat, SERVICES), doorkeeper.guard()])
    port = server.bind(config.listen, mutual=True)
    address = f"{config.listen.rpartition(':')[0]}:{port}"
    seat.settle(config.advertise or address)
    cluster_pb2_grpc.add_ClusterServiceServicer_to_server(ClusterServicer(seat), server.grpc)
    access_pb2_grpc.add_AccessServiceServicer_to_server(AccessServicer(seat), server.grpc)
    control_pb2_grpc.add_ControlServiceServicer_to_server(ControlServicer(seat), server.grpc)
    await _check(store)
    # What is imported stays: looking through it again and again would hold up every agent and router.
    gc.collect()
    gc.freeze()

    if isinstance(store, EtcdStore):
        tasks = [asyncio.create_task(_campaign(config, store, seat))]
    else:
        controller = Controller(config, store, seat=seat)
        await controller.start()
        seat.take(controller)
        tasks = [asyncio.create_task(controller.run())]
    await server.start()
    await server.set_serving(True)
    tasks.append(asyncio.create_task(_tell_health(server, seat)))
    if notice := off_notice(config.listen, config.auth):
        _log.warning("%s", notice)
    announce("controller", address=address)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({*tasks, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        stopping.cancel()
        for task in tasks:
            task.cancel()
        if seat.controller is not None:
            seat.controller.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.stop(_STOP_GRACE_S)
        await store.close()


def _check_policy(config: ControllerConfig) -> None:
    """Raises ConfigError when the autoscaler's policy cannot be made."""
    if config.autoscaler.policy == OFF:
        return
    try:
        load_autoscaler(config.autoscaler.policy, config.autoscaler.chiron)
    except (UnknownAutoscalerError, PolicyError) as error:
        raise ConfigError(f"[controller] autoscaler.policy: {error}") from error


async def _campaign(config: ControllerConfig, store: EtcdStore, seat: Seat) -> None:
    """Campaigns until cancelled, with new connections and watches whenever etcd has been restored."""
    while True:
        making = functools.partial(Controller, config, store, seat=seat)
        try:
            await Candidacy(config, store, seat, making).run()
        except RestoredError as error:
            _log.error("%s; what it holds now counts, and is read anew", error)
        finally:
            await store.close()
        opened = open_store(config.store, config.decisions_kept)
        assert isinstance(opened, EtcdStore)
        store = opened


async def _check(store: EtcdStore | object) -> None:
    """Tells a store that can never be used from one that is away for now. Raises ConfigError."""
    if not isinstance(store, EtcdStore):
        return
    try:
        await store.read()
    except (RefusedError, SchemaError) as error:
        await store.close()
        raise ConfigError(f"[controller] store: {error}") from error
    except UnavailableError:
        return


async def _tell_health(server: Server, seat: Seat) -> None:
    seen = -1
    while True:
        seen = await seat.changed.after(seen)
        await server.set_health(LEADER_HEALTH, seat.controller is not None)
