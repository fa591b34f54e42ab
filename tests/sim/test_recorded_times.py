"""What snapshots and decisions tell of when a live cluster decided, reported and loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from google.protobuf import json_format

from chiron.cli.sim_recorded import controller_config
from chiron.config import ConfigError
from chiron.sim.live_times import LiveTimes
from chiron.sim.recorded.cluster import read_cluster
from chiron.sim.recorded.requests import RecordedRequest
from chiron.sim.recorded.settings import policy_of
from chiron.sim.recorded.times import live_times
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2

ZERO = 1772366400.0
READY, PENDING = types_pb2.INSTANCE_STATE_READY, types_pb2.INSTANCE_STATE_PENDING


def shown(
    at_s: float, *, tick_s: float, router_s: float, node_s: float, second: types_pb2.InstanceState | None
) -> pb.ClusterSnapshot:
    """A snapshot at `at_s`; the other times are those of the last tick and of the last reports before it."""
    made = pb.ClusterSnapshot(
        term=1,
        models=[
            pb.ModelStatus(
                spec=pb.ModelSpec(name="m", autoscaling=pb.AutoscalingSpec(enabled=True)),
                autoscale=pb.AutoscaleStatus(tick_age_ms=1e3 * (at_s - tick_s)),
            )
        ],
        nodes=[pb.NodeStatus(node_id="n0", gpus=[pb.Gpu()], report_age_ms=1e3 * (at_s - node_s))],
        routers=[pb.RouterStatus(router_id="r", report_age_ms=1e3 * (at_s - router_s))],
        instances=[
            pb.InstanceStatus(
                instance_id="old",
                model="m",
                node_id="n0",
                state=READY,
                load=pb.InstanceLoad(load_ms=3000),
                load_age_ms=100,
            )
        ],
    )
    if second is not None:
        made.instances.add(instance_id="new", model="m", state=second)
    made.time.FromNanoseconds(round((ZERO + at_s) * 1e9))
    return made


def written(folder: Path, *, decided: bool) -> tuple[Path, Path | None]:
    snapshots = [
        shown(0.5, tick_s=0.25, router_s=0.125, node_s=0.5, second=None),
        shown(1.5, tick_s=1.25, router_s=1.125, node_s=1.5, second=PENDING),
        # Twice the same tick, and no snapshot shows the one at 3.25.
        shown(2.25, tick_s=2.25, router_s=2.125, node_s=1.5, second=PENDING),
        shown(2.5, tick_s=2.251, router_s=2.125, node_s=2.5, second=PENDING),
        shown(4.5, tick_s=4.25, router_s=4.125, node_s=4.5, second=READY),
    ]
    file = folder / "cluster.jsonl"
    file.write_text("".join(json.dumps(json_format.MessageToDict(one)) + "\n" for one in snapshots))
    if not decided:
        return file, None
    answer = pb.ListDecisionsResponse()
    for number, (instance, took_s) in enumerate((("old", 3.75), ("new", 2.875))):
        one = answer.decisions.add(action="place", model="m", instance_id=instance)
        one.time.FromNanoseconds(round((ZERO + number) * 1e9))
        one.outcome.milestones.add(name="received", after_s=0.1)
        one.outcome.milestones.add(name="ready", after_s=took_s)
    (folder / "decisions.json").write_text(json_format.MessageToJson(answer))
    return file, folder / "decisions.json"


def taken(at_s: float, *, batch: bool = True, served_s: float = 2.0) -> RecordedRequest:
    """One that came 3 s before its worker took it, at `at_s`."""
    return RecordedRequest(
        key=f"{at_s}",
        arrived=ZERO + at_s - 3.0,
        model="m",
        batch=batch,
        prompt_tokens=10,
        output_tokens=10,
        end="ok",
        took_s=3.0 + served_s,
        served_s=served_s,
    )


def times(
    folder: Path, *, decided: bool = True, since_s: float = 0.0, requests: Sequence[RecordedRequest] = ()
) -> LiveTimes:
    cluster = read_cluster(*written(folder, decided=decided))
    return live_times(cluster, requests, ZERO + since_s, presumed_load_s=30.0, drain_notice_s=2.0)


def test_times_are_read_once_and_filled_in_where_no_snapshot_shows_them(tmp_path: Path) -> None:
    found = times(tmp_path)
    assert found.ticks_s == pytest.approx((0.25, 1.25, 2.25, 3.25, 4.25), abs=0.01)
    assert found.router_reports_s == pytest.approx((0.125, 1.125, 2.125, 3.125, 4.125), abs=0.01)
    assert [list(node) for node in found.node_reports_s] == [
        pytest.approx([0.5, 1.5, 2.5, 3.5, 4.5], abs=0.01)
    ]
    assert found.samples_s == pytest.approx((0.4, 1.4, 2.4, 3.4, 4.4), abs=0.01)
    assert (found.presumed_load_s, found.drain_notice_s) == (30.0, 2.0)


def test_times_before_the_first_snapshot_are_expected_and_those_before_zero_left_out(tmp_path: Path) -> None:
    assert times(tmp_path, since_s=-2.0).ticks_s[:3] == pytest.approx((0.25, 1.25, 2.25), abs=0.01)
    assert times(tmp_path, since_s=2.0).ticks_s == pytest.approx((0.25, 1.25, 2.25), abs=0.01)


def test_load_times_are_those_of_the_decisions_or_else_what_can_be_seen(tmp_path: Path) -> None:
    told, seen = times(tmp_path), times(tmp_path, decided=False)
    assert (dict(told.known_loads_s), dict(told.loads_s)) == ({"m": (3.75,)}, {"m": (2.875,)})
    # What the engine took, and from the first snapshot on the way to the first one ready.
    assert (dict(seen.known_loads_s), dict(seen.loads_s)) == ({"m": (3.0,)}, {"m": (3.0,)})


def test_batch_requests_leave_as_fast_as_they_were_seen_to_reach_their_workers(tmp_path: Path) -> None:
    burst = [taken(10.0 + gap_s) for gap_s in (0.0, 0.002, 0.004, 0.006, 0.009)]
    # None of a burst, not by a batch, and of another engine that tells no times.
    others = [taken(12.0), taken(10.001, batch=False), taken(10.003, served_s=math.nan)]
    assert times(tmp_path, requests=burst + others).batch_send_s == pytest.approx(0.002, abs=1e-6)
    assert times(tmp_path, requests=others).batch_send_s == 0.0


def test_a_single_snapshot_tells_no_times(tmp_path: Path) -> None:
    file, _ = written(tmp_path, decided=False)
    file.write_text(file.read_text().splitlines()[0] + "\n")
    found = live_times(read_cluster(file), (), ZERO, presumed_load_s=None, drain_notice_s=0.0)
    assert (found.ticks_s, found.router_reports_s, found.node_reports_s) == ((), (), ((),))


def test_the_autoscaler_is_set_as_the_cluster_was(tmp_path: Path) -> None:
    file = tmp_path / "chiron.toml"
    file.write_text(
        "[controller]\npresumed_load_time_s = 4\n[controller.autoscaler.chiron]\nmin_hold_s = 5\n"
    )
    config = controller_config(file)
    assert (config.presumed_load_time_s, config.drain_notice_s) == (4.0, 2.0)
    choice = policy_of(read_cluster(written(tmp_path, decided=False)[0]), chiron=config.autoscaler.chiron)
    made = choice.make()
    assert (choice.label, made.autoscaler.settings.min_hold_s) == ("chiron[local=model]", 5.0)
    file.write_text("[controller]\npresumed_load_time_s = -1\n")
    with pytest.raises(ConfigError, match="presumed_load_time_s"):
        controller_config(file)
