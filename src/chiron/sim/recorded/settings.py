"""A simulation of the cluster that was recorded: the same models on the same GPUs, from where it stood."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from google.protobuf import json_format

from chiron.config import ConfigError
from chiron.engine import InvalidLimitError, Profile, UnknownProfileError, adjusted_profile
from chiron.policy.fleet import ChironSettings
from chiron.policy.words import RequestClass, Role
from chiron.sim.demand import Demand, fit_to_context, merge
from chiron.sim.live_times import LiveTimes
from chiron.sim.policies import STATIC, PolicyChoice
from chiron.sim.profile_files import read_profile
from chiron.sim.recorded.cluster import LiveCluster
from chiron.sim.recorded.requests import RecordedRequest
from chiron.sim.recorded.times import interval_of
from chiron.sim.scenario import Reading, longest
from chiron.sim.settings import LARGEST, GpuType, InvalidSettingError, SimModel, SimSettings
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2

_DEFAULT_BATCH_SIZE = 256
_SLEEP_LEVELS: Mapping[int, Literal[0, 1, 2]] = {1: 1, 2: 2}
_PROFILE_ARGUMENTS = (
    "time_scale",
    "load_time_s",
    "kv_capacity_tokens",
    "max_context_tokens",
    "draft_tokens",
    "acceptance_rate",
)


def settings_of(
    cluster: LiveCluster,
    profiles: Mapping[str, str],
    seed: int,
    live: LiveTimes | None = None,
    *,
    asked: Collection[str] | None = None,
) -> SimSettings:
    """The cluster as its first snapshot describes it, without the models that it cannot host.

    Args:
        cluster: as it was.
        profiles: profile by model, for engines other than `sim`, whose arguments name one.
        seed: of the simulation.
        live: when things happened there; None: nobody knows.
        asked: the models that have requests, whose engines must be equally fast; None: all.

    Raises:
        ConfigError: something of the cluster cannot be simulated; the text says what.
    """
    snapshot = cluster.first
    unknown = profiles.keys() - {model.spec.name for model in snapshot.models}
    if unknown:
        raise ConfigError(f"--profile: the cluster has no model {', '.join(sorted(unknown))}")
    if not snapshot.models:
        raise ConfigError("the cluster has no model")
    gpus, left = _gpus(snapshot), unhosted(cluster)
    hosted = [model for model in snapshot.models if model.spec.name not in left]
    if not hosted:
        told = "; ".join(f"{name}: {why}" for name, why in sorted(left.items()))
        raise ConfigError(f"the cluster can host none of its models ({told})")
    try:
        return SimSettings(
            models=tuple(_model(model.spec, cluster, profiles) for model in hosted),
            gpu_types=(gpus,),
            seed=seed,
            step_time_factor=_time_scale(one for one in hosted if asked is None or one.spec.name in asked),
            tick_s=(interval_of(live.ticks_s) if live else None) or 1.0,
            live=live or LiveTimes(),
        )
    except InvalidSettingError as error:
        raise ConfigError(str(error)) from error


def unhosted(cluster: LiveCluster) -> Mapping[str, str]:
    """Models of which no node can hold an instance, and why. Raises ConfigError as `settings_of`."""
    most = _gpus(cluster.first).gpus_per_node
    return {
        model.spec.name: f"an instance needs {model.spec.gpus_per_instance} GPUs, a node has {most}"
        for model in cluster.first.models
        if model.spec.gpus_per_instance > most
    }


def policy_of(
    cluster: LiveCluster, local: str | None = None, chiron: ChironSettings | None = None
) -> PolicyChoice:
    """Who decided there: both autoscalers, one of them, or none.

    Args:
        cluster: as it was.
        local: whom to take for the local autoscaler; None: whom the instances had.
        chiron: what its global autoscaler was set to; None: the defaults.

    Raises:
        ConfigError: instances have had different ones.
    """
    left = unhosted(cluster)
    models = [model for model in cluster.first.models if model.spec.name not in left]
    autoscaled = any(_is_autoscaled(model.spec) for model in models)
    if local is not None:
        return PolicyChoice("chiron" if autoscaled else "fixed", local=local, settings=chiron)
    told = {model.spec.autoscaling.local for model in models}
    told |= {instance.local.autoscaler for instance in cluster.first.instances}
    told -= {""}
    if len(told) > 1:
        names = ", ".join(sorted(told))
        raise ConfigError(f"instances have different local autoscalers ({names}): choose one with --local")
    found = next(iter(told), "model")
    local = STATIC if found == "off" else found
    return PolicyChoice("chiron" if autoscaled else "fixed", local=local, settings=chiron)


def reading_of(requests: Iterable[RecordedRequest], settings: SimSettings, zero: float) -> Reading:
    """The workload; times are from `zero`, what came before it arrives then.

    Requests are in the order of `requests`, which must be that of their arrivals. Raises ConfigError for a
    model that the cluster does not have, and where there is no request.
    """
    models = {model.name: index for index, model in enumerate(settings.models)}
    demands, shortened = [], 0
    for one in requests:
        if one.model not in models:
            raise ConfigError(f"model {one.model!r} of the recording is none of the cluster's")
        index = models[one.model]
        prompt, output, cut = fit_to_context(
            # What the engine had cached of a prompt, it did not compute.
            np.array([max(1, one.prompt_tokens - one.cached_tokens)], dtype=np.int32),
            np.array([one.output_tokens], dtype=np.int32),
            longest(settings.models[index].profile),
        )
        shortened += cut
        kind = RequestClass.BATCH if one.batch else RequestClass.INTERACTIVE
        arrival = np.array([max(0.0, one.arrived - zero)])
        # A batch that came before is due no later for that.
        passed_s = max(0.0, zero - one.arrived)
        deadline_in_s = max(0.001, one.deadline_s - passed_s) if one.batch else math.inf
        demands.append(Demand(index, kind, arrival, prompt, output, deadline_in_s))
    if not demands:
        raise ConfigError("the recording has no request that can be simulated on this cluster")
    return Reading(merge(demands), shortened)


def _is_autoscaled(spec: pb.ModelSpec) -> bool:
    return spec.autoscaling.enabled


def _model(spec: pb.ModelSpec, cluster: LiveCluster, profiles: Mapping[str, str]) -> SimModel:
    profile = _profile(spec, profiles)
    ready: Counter[Role] = Counter()
    for instance in cluster.first.instances:
        if instance.model == spec.name and instance.state == types_pb2.INSTANCE_STATE_READY:
            ready[Role(instance.role)] += 1
    ceiling = spec.max_batch_size or _DEFAULT_BATCH_SIZE
    interactive, batch = spec.slo_defaults.interactive, spec.slo_defaults.batch
    fixed = None if _is_autoscaled(spec) else sum(ready.values())
    asleep = spec.autoscaling
    try:
        return SimModel(
            name=spec.name,
            profile=profile,
            min_instances=spec.min_instances if fixed is None else fixed,
            # A maximum of 0 is none.
            max_instances=spec.max_instances if fixed is None else max(1, fixed),
            initial=dict(ready),
            ttft_slo_s=interactive.ttft_ms / 1e3 if interactive.HasField("ttft_ms") else LARGEST,
            itl_slo_s=interactive.itl_ms / 1e3 if interactive.HasField("itl_ms") else LARGEST,
            batch_itl_slo_s=batch.itl_ms / 1e3 if batch.HasField("itl_ms") else LARGEST,
            initial_batch_size=min(spec.initial_batch_size or ceiling, ceiling),
            max_batch_size=ceiling,
            initial_step_token_budget=spec.initial_step_token_budget,
            # A process takes its time beside the engine's.
            load_time_s=cluster.load_s.get(spec.name),
            sleep_level=_SLEEP_LEVELS.get(asleep.sleep_level, 0),
            sleep_host_gb=asleep.sleep_host_mib / 1024,
            priority=spec.priority,
        )
    except InvalidSettingError as error:
        raise ConfigError(f"model {spec.name!r}: {error}") from error


def _profile(spec: pb.ModelSpec, profiles: Mapping[str, str]) -> Profile:
    arguments: dict[str, Any] = json_format.MessageToDict(spec.engine_args)
    name = profiles.get(spec.name) or (arguments.get("profile", "toy") if spec.engine == "sim" else "")
    if not name:
        raise ConfigError(
            f"model {spec.name!r}: engine {spec.engine!r} names no profile: give --profile {spec.name}=NAME"
        )
    given: dict[str, Any] = {}
    if spec.engine == "sim":
        given = {key: arguments[key] for key in _PROFILE_ARGUMENTS if key in arguments}
        for key in ("kv_capacity_tokens", "max_context_tokens", "draft_tokens"):
            if key in given:
                given[key] = int(given[key])
    try:
        named = read_profile(Path(name)) if name.endswith(".toml") else adjusted_profile(name, **given)
        return named.replace(gpus=max(1, spec.gpus_per_instance))
    except (UnknownProfileError, InvalidLimitError) as error:
        raise ConfigError(f"model {spec.name!r}: {error}") from error


def _time_scale(models: Iterable[pb.ModelStatus]) -> float:
    scales = {
        float(json_format.MessageToDict(model.spec.engine_args).get("time_scale", 1.0))
        for model in models
        if model.spec.engine == "sim"
    } or {1.0}
    if len(scales) > 1:
        raise ConfigError(f"engine_args.time_scale differs between models: {sorted(scales)}")
    return scales.pop()


def _gpus(snapshot: pb.ClusterSnapshot) -> GpuType:
    shapes = {
        (len(node.gpus), ",".join(sorted({gpu.name for gpu in node.gpus})))
        for node in snapshot.nodes
        if node.gpus
    }
    if len(shapes) != 1:
        told = "; ".join(f"{count} × {name or 'unnamed'}" for count, name in sorted(shapes)) or "none"
        raise ConfigError(f"the nodes' GPUs must be alike to be simulated, and they are: {told}")
    [(count, name)] = shapes
    nodes = sum(bool(node.gpus) for node in snapshot.nodes)
    return GpuType(name=name or "gpu", nodes=nodes, gpus_per_node=count)
