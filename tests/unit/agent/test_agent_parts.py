"""Config, desired state, ledger, ports, GPUs, launch files, records and the lock, one by one."""

from __future__ import annotations

from pathlib import Path

import pynvml
import pytest

from chiron.config import ConfigError, load_config
from chiron.internal.v1 import control_pb2
from chiron.v1 import cluster_pb2, types_pb2
from services.local_agent import launch
from services.local_agent.config import AgentConfig, parse_ports
from services.local_agent.desired import BadDesired, Goal, check_instance_id, want_of
from services.local_agent.gpus import NvmlGpus, discover
from services.local_agent.ledger import GpuLedger, PortPool
from services.local_agent.lock import NodeLock
from services.local_agent.records import StateDir
from services.local_agent.socket_folders import short_hash


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("host", "0.0.0.0"),
        ("advertise_host", "::"),
        ("gpus", "-2"),
        ("max_restarts", "-1"),
        ("drain_timeout_s", "0"),
        ("silence_timeout_s", "1.5"),
        ("worker_ports", "50-40"),
        ("worker_ports", "many"),
        ("worker_env", "NOEQUALS"),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_key(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[agent\] {key}: "):
        load_config(AgentConfig, "agent", environ={}, overrides={key: value})


def test_ports_are_any_one_or_a_range() -> None:
    assert parse_ports("0") is None
    assert parse_ports("50100") == range(50100, 50101)
    assert parse_ports("50100-50102") == range(50100, 50103)


def desired(**changes: object) -> control_pb2.DesiredInstance:
    fields: dict[str, object] = {
        "instance_id": "m-1",
        "generation": 3,
        "state": control_pb2.DESIRED_STATE_RUNNING,
        "spec": cluster_pb2.ModelSpec(name="m", engine="sim", role=types_pb2.ROLE_BATCH),
        "gpu_indexes": [1, 0],
        **changes,
    }
    return control_pb2.DesiredInstance(**fields)  # type: ignore[arg-type]


def test_desired_state_takes_the_agents_and_the_specs_defaults() -> None:
    want = want_of(desired(), node_gpus=[0, 1], drain_timeout_s=12.0)
    assert (want.goal, want.gpus, want.role, want.drain_timeout_s) == (
        Goal.RUNNING,
        (0, 1),
        types_pb2.ROLE_BATCH,
        12.0,
    )
    own = want_of(
        desired(role=types_pb2.ROLE_INTERACTIVE, drain_timeout_s=3.0), node_gpus=[0, 1], drain_timeout_s=12.0
    )
    assert (own.role, own.drain_timeout_s) == (types_pb2.ROLE_INTERACTIVE, 3.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": control_pb2.DESIRED_STATE_UNSPECIFIED}, "state: "),
        ({"gpu_indexes": [0, 7]}, "gpu_indexes: this node has GPUs 0, 1, not 7"),
        ({"gpu_indexes": [0, 0]}, "gpu_indexes: 0, 0 names a GPU twice"),
        ({"spec": cluster_pb2.ModelSpec(engine="sim")}, "spec.name: "),
        ({"spec": cluster_pb2.ModelSpec(name="m")}, "spec.engine: "),
    ],
)
def test_desired_state_that_cannot_be_carried_out_names_the_field(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(BadDesired, match=f"^{message}"):
        want_of(desired(**changes), node_gpus=[0, 1], drain_timeout_s=1.0)


@pytest.mark.parametrize("instance_id", ["", "..", "../m", "a/b", "A", "m" * 101])
def test_an_id_that_must_not_name_a_folder_is_refused(instance_id: str) -> None:
    with pytest.raises(BadDesired, match=r"^instance_id: "):
        check_instance_id(instance_id)


def test_a_claim_takes_all_its_gpus_or_none() -> None:
    ledger = GpuLedger()
    assert ledger.claim("a", (0, 1)) == {}
    assert ledger.claim("b", (1, 2)) == {1: "a"}
    assert ledger.claim("c", (2,)) == {}
    ledger.release("a")
    assert ledger.claim("b", (0, 1)) == {}


def test_a_claim_repeated_by_its_holder_is_granted() -> None:
    ledger = GpuLedger()
    ledger.claim("a", (0,))
    assert ledger.claim("a", (0,)) == {}


def test_ports_are_taken_in_turn_and_none_twice() -> None:
    pool = PortPool(range(10, 12))
    assert (pool.take("a"), pool.take("b"), pool.take("c")) == (10, 11, None)
    pool.release("a")
    assert pool.take("c") == 10
    pool.release("b")
    assert pool.take("d") == 11


def test_a_restarted_worker_gets_another_port_while_there_is_one() -> None:
    pool = PortPool(range(10, 12))
    assert pool.take("a") == 10
    assert pool.take("a") == 11


def test_without_a_range_the_system_chooses() -> None:
    assert PortPool(None).take("a") == 0


def test_declared_gpus_are_healthy_and_named_by_index() -> None:
    inventory = discover(3)
    assert [(gpu.index, gpu.uuid, gpu.healthy) for gpu in inventory.read()] == [
        (0, "declared-0", True),
        (1, "declared-1", True),
        (2, "declared-2", True),
    ]
    assert inventory.visible_devices([0, 2]) == "0,2"


def test_a_node_may_declare_no_gpus() -> None:
    assert list(discover(0).read()) == []


def test_a_node_without_a_driver_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    with pytest.raises(ConfigError, match=r"^gpus: NVML finds none .*gpus=N$"):
        discover(-1)


def test_nvml_gives_identity_devices_and_health(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        total = 80 << 30

    remap_failed = {0: 0, 1: 1}
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 2)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lambda handle: f"GPU-{handle}")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: "A100")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: Memory)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetRemappedRows", lambda handle: (0, 0, 0, remap_failed[handle]))
    inventory = NvmlGpus()
    good, bad = inventory.read()
    assert (good.uuid, good.name, good.memory_bytes, good.healthy) == ("GPU-0", "A100", 80 << 30, True)
    assert not bad.healthy
    assert "row remapping" in bad.reason
    assert inventory.visible_devices([1, 0]) == "GPU-1,GPU-0"

    def lost(handle: int) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lost)
    assert [gpu.healthy for gpu in inventory.read()] == [False, False]


def test_a_worker_is_told_all_it_needs(tmp_path: Path) -> None:
    want = want_of(desired(spec_version=4), node_gpus=[0, 1], drain_timeout_s=1.0)
    config = AgentConfig(host="10.0.0.7", worker_python="/opt/python")
    command = launch.worker_command(
        config, want, incarnation=9, port=50100, spec_file=tmp_path / "s.json", socket=tmp_path / "c.sock"
    )
    assert command[:3] == ["/opt/python", "-m", "services.worker"]
    assert set(command[4::2]) == {
        "instance_id=m-1",
        "incarnation=9",
        f"spec_file={tmp_path}/s.json",
        "spec_version=4",
        "role=batch",
        "listen=10.0.0.7:50100",
        f"socket={tmp_path}/c.sock",
    }


def test_workers_may_bind_elsewhere_than_they_are_reached(tmp_path: Path) -> None:
    config = AgentConfig(host="0.0.0.0", advertise_host="10.0.0.7")
    want = want_of(desired(), node_gpus=[0, 1], drain_timeout_s=1.0)
    command = launch.worker_command(
        config, want, incarnation=9, port=50100, spec_file=tmp_path / "s.json", socket=tmp_path / "c.sock"
    )
    assert {"listen=0.0.0.0:50100", "advertise_host=10.0.0.7"} < set(command)
    assert (config.reachable_host, AgentConfig().reachable_host) == ("10.0.0.7", "127.0.0.1")


def test_worker_env_is_added_to_the_agents_environment_and_devices() -> None:
    config = AgentConfig(worker_env=("OMP_NUM_THREADS=1", "A=x=y"))
    environ = launch.worker_environ(config, "0,1", {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "5"})
    assert environ == {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "OMP_NUM_THREADS": "1",
        "A": "x=y",
    }


def test_a_start_sets_the_last_log_aside_and_keeps_few(tmp_path: Path) -> None:
    for start in range(6):
        launch.rotate_log(tmp_path).write_text(f"start {start}\n")
    logs = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert logs == {
        "worker.log": "start 5\n",
        "worker.log.1": "start 4\n",
        "worker.log.2": "start 3\n",
        "worker.log.3": "start 2\n",
    }


def test_the_tail_of_a_log_is_its_last_lines_however_long_it_is(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    assert launch.log_tail(log) == ""
    log.write_text("noise\n" * 10_000 + "\nTraceback\n  boom\n\nRuntimeError: no memory\n")
    assert launch.log_tail(log) == "noise | Traceback | boom | RuntimeError: no memory"


def test_a_deep_state_folder_has_its_sockets_elsewhere(tmp_path: Path) -> None:
    shallow = Path("/tmp") / short_hash(str(tmp_path))
    assert launch.socket_folder(shallow, tmp_path) == shallow
    shallow.rmdir()
    deep = tmp_path / ("d" * 100)
    folder = launch.socket_folder(None, deep)
    try:
        assert len(str(launch.socket_path(folder, "m-1"))) <= 107
        assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        folder.rmdir()
    with pytest.raises(ConfigError, match=r"^socket_dir: .* too long"):
        launch.socket_folder(deep, tmp_path)


def test_folders_of_ended_instances_do_not_pile_up(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    for name in ("m-1", *(f"old-{number}" for number in range(30))):
        state.instance_dir(name).mkdir()
        state.prune(["m-1"])
    folders = {path.name for path in (tmp_path / "instances").iterdir()}
    assert len(folders) == 21
    assert "m-1" in folders


def test_a_state_folder_keeps_its_name_and_no_other_has_it(tmp_path: Path) -> None:
    first = StateDir(tmp_path / "a").identity()
    assert first == StateDir(tmp_path / "a").identity()
    assert first != StateDir(tmp_path / "b").identity()


def test_instances_that_end_at_once_do_not_trip_over_each_others_pruning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StateDir(tmp_path)
    for number in range(30):
        state.instance_dir(f"old-{number:02}").mkdir()
    listed = list((tmp_path / "instances").iterdir())
    state.prune([])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", lambda _: iter(listed))
        state.prune([])
    assert len(list((tmp_path / "instances").iterdir())) <= 20


def test_one_agent_per_state_folder(tmp_path: Path) -> None:
    first = NodeLock(tmp_path)
    with pytest.raises(ConfigError, match=r"^state_dir: .* in use by another agent \(pid \d+\)$"):
        NodeLock(tmp_path)
    first.close()
    NodeLock(tmp_path).close()


@pytest.mark.parametrize("name", ["a/../b", "node 1", "n" * 254, "nöde"])
def test_a_node_s_name_is_refused_where_it_could_not_be_told_from_a_path(name: str) -> None:
    with pytest.raises(ValueError, match=r"node_id: must be 1 to 253 characters of \[A-Za-z0-9\._-\], not "):
        AgentConfig(node_id=name)
    assert AgentConfig(node_id="gpu-7.rack_2.example").node_id == "gpu-7.rack_2.example"
