"""Parts computed on Ray: those of one process, whatever is lost on the way.

The worker is a plain class, tested without Ray; the cluster is of two nodes on this machine.
"""

import os
import secrets
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from typing import Any

import gated_reading
import pytest
import torch
from model_cases import digits_model
from part_cases import BROKEN, weights_and_pictures
from processes import PATIENCE

from crate_mae import save_model
from crate_mae.cli import main
from crate_mae.evaluation.extracting import Extraction, begin_parts
from crate_mae.evaluation.feature_parts import FeatureParts
from crate_mae.evaluation.on_ray import PartWorker, write_on_ray

AGENTS = (
    "metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port",
    "runtime_env_agent_port",
)  # fmt: skip
"""Ports of a node's helpers."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights/ and pictures/."""
    return weights_and_pictures(tmp_path_factory.mktemp("ray"))


@pytest.fixture
def wanted(place: Path, monkeypatch: pytest.MonkeyPatch) -> Extraction:
    """Features of the pictures, named by relative paths."""
    monkeypatch.chdir(place)
    return Extraction(weights="weights", images=("imagefolder:pictures",), batch_size=2, workers=0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """A worker sets the threads of its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def worker(wanted: Extraction, folder: Path, place: Path) -> PartWorker:
    return PartWorker(wanted, str(folder), place=str(place), device="cpu", threads=1)


@pytest.mark.usefixtures("one_thread")
def test_workers_write_what_one_process_writes_each_part_once(
    wanted: Extraction, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = wanted.open("cpu")
    begin_parts(extractor, tmp_path / "f", part_size=4)
    monkeypatch.chdir(tmp_path)
    first, second = (worker(wanted, tmp_path / "f", place) for _ in range(2))
    assert first({"number": [0, 2]}) == {"number": [0, 2], "failure": ["", ""]}
    written = (tmp_path / "f" / "part-00002.parquet").stat().st_mtime_ns
    assert second({"number": [5, 2, 4, 3, 1]})["failure"] == [""] * 5
    assert (tmp_path / "f" / "part-00002.parquet").stat().st_mtime_ns == written
    parts, missing = begin_parts(extractor, tmp_path / "one", part_size=4)
    assert len(list(extractor.write(parts, missing))) == 6
    assert contents(tmp_path / "f") == contents(tmp_path / "one")


@pytest.mark.usefixtures("one_thread")
def test_a_machine_that_sees_something_else_says_so(
    wanted: Extraction, place: Path, tmp_path: Path
) -> None:
    begin_parts(wanted.open("cpu"), tmp_path / "f", part_size=4)
    before = contents(tmp_path / "f")
    save_model(digits_model(), tmp_path / "same")
    torch.manual_seed(1)
    other = digits_model()
    with torch.no_grad():
        other.encoder.norm.bias.add_(1)
    save_model(other, tmp_path / "other")
    for change, folder, home, message in (
        ({"weights": str(tmp_path / "other")}, "f", place, "sees something else: weights"),
        ({"images": ("imagefolder:pictures/a",)}, "f", place, "number of images (22 there, 12"),
        ({}, "g", place, "holds no parts of features"),
        ({}, "f", tmp_path / "nowhere", "nowhere"),
    ):
        told = worker(replace(wanted, **change), tmp_path / folder, home)({"number": [0]})
        (failure,) = told["failure"]
        assert failure.startswith(f"{socket.gethostname()}: "), failure
        assert message in failure
    assert contents(tmp_path / "f") == before


def test_what_is_refused_before_a_cluster_starts(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("crate_mae.cli.extract.check_installed", lambda _: None)
    words = ["extract", "weights", "imagefolder:pictures", "--out"]
    ray = ["--engine", "ray"]
    for more, message in (
        (["f.npz", *ray], "--engine ray writes a folder of parts: name one, not f.npz"),
        (["f", "--ray-workers", "2"], "--ray-workers is for --engine ray"),
        (["f", "--engine", "onnx", "--ray-cpus", "2"], "--ray-cpus is for --engine ray"),
        (["f", *ray, "--ray-workers", "0"], "--ray-workers must be at least 1"),
    ):
        assert main([*words, *more]) == 1
        assert message in capsys.readouterr().err
    assert not (place / "f").exists()


def test_a_missing_ray_names_the_command(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("crate_mae.common.extras.find_spec", lambda _: None)
    words = ["extract", "weights", "imagefolder:pictures", "--out", "f", "--engine", "ray"]
    assert main(words) == 1
    assert 'pip install "crate-mae[ray]"' in capsys.readouterr().err
    assert not (place / "f").exists()


def node_of(session: str) -> dict[str, Any]:
    """What starts a node of one CPU that need not wait for its helpers.

    Ray waits 15 seconds for them, and no more, where their ports are not known beforehand; a busy
    machine takes longer. One of the ports can be told in a file alone.
    """
    sockets = [socket.socket() for _ in AGENTS]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = dict(zip(AGENTS, (one.getsockname()[1] for one in sockets), strict=True))
    for one in sockets:
        one.close()
    number = secrets.token_hex(28)
    told = Path("/tmp/ray", session, f"dashboard_agent_listen_port_{number}")
    told.parent.mkdir(parents=True, exist_ok=True)
    told.write_text(str(ports["dashboard_agent_listen_port"]))
    return {
        "num_cpus": 1, "object_store_memory": 80 << 20, **ports,
        "env_vars": {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": number},
    }  # fmt: skip


@pytest.fixture
def two_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ray, connected to a cluster of two nodes on this machine."""
    ray = pytest.importorskip("ray", reason="no Ray")
    from ray.cluster_utils import Cluster

    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0",
        "RAY_worker_register_timeout_seconds": "600", "RAY_agent_register_timeout_ms": "600000",
        "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RAY_worker_niceness": "0",
        "PYTHONPATH": str(Path(gated_reading.__file__).parent),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    session = f"session_{secrets.token_hex(4)}_{os.getpid()}"
    head = {"session_name": session, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**head, **node_of(session)})
    try:
        cluster.add_node(**node_of(session))
        hook = {"worker_process_setup_hook": "gated_reading.stop_at_the_gate"}
        ray.init(
            address=cluster.address,
            log_to_driver=False,
            logging_level="warning",
            runtime_env={**hook, "env_vars": {gated_reading.GATE: str(tmp_path / "go")}},
        )
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.usefixtures("two_nodes")
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_worker_killed_in_the_middle_loses_nothing_and_doubles_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two workers stand in the middle of a part each when one of them is killed."""
    monkeypatch.chdir(place)
    folder, seen = tmp_path / "f", list[set[int]]()
    before: dict[str, int] = {}

    def kill_one() -> None:
        until = monotonic() + PATIENCE
        while monotonic() < until:
            # What is being written bears the number of the process that writes it.
            writing = {int(path.name.split(".")[-2]) for path in folder.glob(".part-*.partial")}
            if len(writing) == 2:
                seen.append(writing)
                before.update({p.name: p.stat().st_mtime_ns for p in folder.glob("part-*")})
                os.kill(max(writing), signal.SIGKILL)
                break
            sleep(0.01)
        (tmp_path / "go").touch()

    killer = Thread(target=kill_one, daemon=True)
    killer.start()
    words = ["extract", "weights", "imagefolder:pictures", "--part-size", "2", "--batch-size", "1"]
    status = main([*words, "--engine", "ray", "--ray-workers", "2", "--out", str(folder)])
    killer.join()
    told = capsys.readouterr()
    assert status == 0, told.err
    assert len(seen) == 1
    assert os.getpid() not in seen[0]
    assert (
        {"part-00000.parquet", "part-00001.parquet"}
        <= set(before)
        < {part.name for part in FeatureParts.open(folder).parts}
    )
    assert f"wrote 11 parts of {folder}: features of 17 images, {len(BROKEN)} passed over" in (
        told.out
    )
    for index in BROKEN:
        assert told.err.count(f"/{index:02d}.png (not an image") == 1
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before
    assert main([*words, "--workers", "0", "--out", str(tmp_path / "one")]) == 0
    assert contents(folder) == contents(tmp_path / "one")

    # What a worker cannot do is told in a line, and where.
    (folder / "part-00007.parquet").unlink()
    parts = FeatureParts.open(folder)
    wanted = Extraction(weights="weights", images=("imagefolder:pictures/a",), batch_size=1)
    with pytest.raises(RuntimeError, match=f"Ray worker on {socket.gethostname()}: this machine"):
        list(write_on_ray(wanted, parts, parts.missing()))
    with pytest.raises(ValueError, match="no machine of the Ray cluster has 2 CPUs for"):
        list(write_on_ray(wanted, parts, parts.missing(), cpus=2))
    with pytest.raises(ValueError, match="no machine of the Ray cluster has 1 CPUs and a GPU"):
        list(write_on_ray(wanted, parts, parts.missing(), device="cuda"))
