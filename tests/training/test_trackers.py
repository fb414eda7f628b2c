"""Runs are followed in every tracker with the numbers of their own files, resumed runs as one."""

import csv
import json
import shutil
import sqlite3
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, Logger
from pages import ROOT, SMALL, code_of, commands_of
from PIL import Image
from source_cases import Write
from training_runs import assert_same_run, small_config, small_finetune

from crate_mae.cli import main
from crate_mae.training import tracker_kinds
from crate_mae.training.config import OptimConfig, PretrainConfig, RecordConfig, TrainerConfig
from crate_mae.training.finetune import finetune
from crate_mae.training.metrics_log import read_metrics
from crate_mae.training.pretrain import pretrain
from crate_mae.training.tracker_names import TrackerName
from crate_mae.training.trackers import IDENTITIES

# Of libraries, whose users do not see them either.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

Numbers = dict[tuple[int, str], float]
"""A value by step and name."""

HERE: list[Any] = ["tensorboard", "csv"]
HERE += [name for name in ("wandb", "mlflow", "trackio") if find_spec(name) is not None]

PROJECT = "test"


def needs(name: str) -> None:
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed: its tracking is not tested")


def followed_config(*loggers: TrackerName, **changes: Any) -> PretrainConfig:
    return small_config(
        record=RecordConfig(
            log_every=1, checkpoint_steps=2, reconstruct_epochs=1, reconstruct_images=2,
            measure_epochs=0,
        ),
        trainer=TrainerConfig(accelerator="cpu", devices=1, loggers=loggers),
        **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which all trackers keep what they are given; nothing leaves this machine."""
    folder = tmp_path_factory.mktemp("trackers")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_PROJECT": PROJECT,
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'there' / 'mlflow.db'}",
            "MLFLOW_EXPERIMENT_NAME": PROJECT, "GIT_PYTHON_REFRESH": "quiet",
            "TRACKIO_DIR": str(folder / "trackio"), "TRACKIO_PROJECT": PROJECT,
            "HF_HUB_OFFLINE": "1",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        (folder / "there").mkdir()
        yield folder


@pytest.fixture(scope="module")
def run(place: Path) -> tuple[Path, dict[str, str]]:
    """A run followed everywhere, stopped within its second epoch and resumed; and what its
    tracked runs were before that."""
    config, folder = followed_config(*HERE), place / "run"
    assert not pretrain(config, folder, stop_after=7).finished
    before = {}
    if (folder / IDENTITIES).exists():
        before = json.loads((folder / IDENTITIES).read_text())
    assert pretrain(config, folder, resume=True).finished
    return folder, before


def lines_of(folder: Path) -> list[tuple[tuple[int, str], float]]:
    """Every number that the run has recorded, sorted; a step may have an epoch's number twice."""
    return sorted(
        ((record["step"], key), value)
        for record in read_metrics(folder)
        for key, value in record.items()
        if key not in ("step", "time")
    )


def recorded(folder: Path) -> Numbers:
    return dict(lines_of(folder))


def test_numbers_and_weights_are_those_of_a_run_that_nobody_follows(
    run: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    assert pretrain(followed_config(), tmp_path / "plain").finished
    assert_same_run(tmp_path / "plain", run[0])
    assert not (tmp_path / "plain" / "tensorboard").exists()


def test_a_resumed_run_goes_on_in_the_same_tracked_runs(run: tuple[Path, dict[str, str]]) -> None:
    folder, before = run
    if not before:
        pytest.skip("no tracker that has runs of its own is installed: wandb, mlflow, trackio")
    assert set(before) == set(HERE) - {"tensorboard", "csv"}
    assert json.loads((folder / IDENTITIES).read_text()) == before


def sheet_sizes(folder: Path) -> list[tuple[int, int]]:
    """Sizes of the pictures that the run has drawn, of epochs 1, 2 and 3."""
    sheets = sorted((folder / "reconstructions").iterdir())
    assert len(sheets) == 3
    return sizes(sheets)


def sizes(files: list[Path]) -> list[tuple[int, int]]:
    found = []
    for path in files:
        with Image.open(path) as image:
            found.append(image.size)
    return found


def test_csv(run: tuple[Path, dict[str, str]]) -> None:
    folder = run[0]
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = {
        (int(row["step"]), key): float(value)
        for row in rows
        for key, value in row.items()
        if value and key != "step"
    }
    assert found == recorded(folder)
    settings = yaml.safe_load((folder / "csv" / "hparams.yaml").read_text())
    check_settings(settings, folder)


def check_settings(found: dict[str, Any], folder: Path) -> None:
    """All settings as the run has saved them, and what its data are."""
    facts = json.loads((folder / "data.json").read_text())
    facts["unreadable"] = len(facts["unreadable"])
    assert found["data_facts"] == facts
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert {key: found[key] for key in saved} == saved


def test_tensorboard(run: tuple[Path, dict[str, str]]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run[0]
    kept = {"images": 0, "scalars": 0, "tensors": 0}
    events = EventAccumulator(str(folder / "tensorboard"), kept).Reload()
    found = {
        (event.step, name): event.value
        for name in events.Tags()["scalars"]
        for event in events.Scalars(name)
    }
    wanted = recorded(folder)
    assert found.keys() == wanted.keys()
    assert all(found[key] == pytest.approx(value, rel=1e-6) for key, value in wanted.items())
    images = events.Images("reconstructions")
    assert [image.step for image in images] == [5, 10, 15]
    assert [(image.width, image.height) for image in images] == sheet_sizes(folder)
    settings = yaml.safe_load((folder / "tensorboard" / "hparams.yaml").read_text())
    check_settings(settings, folder)


def unflattened(flat: dict[str, str]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *parts, last = key.split("/")
        part = nested
        for name in parts:
            part = part.setdefault(name, {})
        part[last] = value
    return nested


def test_mlflow(run: tuple[Path, dict[str, str]], place: Path) -> None:
    needs("mlflow")
    from mlflow.tracking import MlflowClient

    folder, before = run
    client = MlflowClient(f"sqlite:///{place / 'there' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(PROJECT)
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.info.run_id == before["mlflow"]
    assert tracked.info.run_name == "small"
    assert tracked.info.status == "FINISHED"
    found = [
        ((entry.step, name), entry.value)
        for name in tracked.data.metrics
        for entry in client.get_metric_history(tracked.info.run_id, name)
    ]
    assert sorted(found) == lines_of(folder)
    params = unflattened(tracked.data.params)
    assert params["optim"]["batch_size"] == "32"
    assert params["data_facts"]["images"] == "180"
    for name in ("config.yaml", "data.json"):
        kept = Path(client.download_artifacts(tracked.info.run_id, name, str(place)))
        assert kept.read_bytes() == (folder / name).read_bytes()
    pictures = [
        Path(client.download_artifacts(tracked.info.run_id, entry.path, str(place)))
        for entry in client.list_artifacts(tracked.info.run_id, "images")
        if entry.path.endswith(".png")
    ]
    assert sorted(sizes(pictures)) == sorted(sheet_sizes(folder))
    assert (place / "there" / "mlartifacts").is_dir()


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of an offline run's file: LevelDB's log format, W&B's own messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(whole)
            whole = b""


def test_wandb(run: tuple[Path, dict[str, str]]) -> None:
    needs("wandb")
    folder, before = run
    found: list[tuple[tuple[int, str], float]] = []
    settings: dict[str, Any] = {}
    sessions = sorted((folder / "wandb").glob("offline-run-*"))
    assert len(sessions) == 2
    for session in sessions:
        assert session.name.endswith(f"-{before['wandb']}")
        for record in wandb_records(session / f"run-{before['wandb']}.wandb"):
            if record.HasField("run") and record.run.run_id:
                assert record.run.run_id == before["wandb"]
                assert (record.run.project, record.run.display_name) == (PROJECT, "small")
            for item in record.config.update:
                settings[item.key] = json.loads(item.value_json)
            line = {
                "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in record.history.item
            }
            step = line.pop("trainer/global_step", None)
            if "reconstructions/_type" not in line:  # the line of a picture
                found += [
                    ((step, name), value)
                    for name, value in line.items()
                    if not name.startswith("_")  # W&B's own
                ]
    assert sorted(found) == lines_of(folder)
    check_settings(settings, folder)
    pictures = sorted((folder / "wandb").rglob("files/media/images/reconstructions_*.png"))
    assert sorted(sizes(pictures)) == sorted(sheet_sizes(folder))


def test_trackio(run: tuple[Path, dict[str, str]], place: Path) -> None:
    needs("trackio")
    folder, before = run
    with sqlite3.connect(place / "trackio" / f"{PROJECT}.db") as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics").fetchall()
        configs = database.execute("SELECT run_name, config FROM configs").fetchall()
    assert {name for name, *_ in [*rows, *configs]} == {before["trackio"]}
    found = [
        ((step, name), value)
        for _, step, metrics in rows
        for name, value in json.loads(metrics).items()
        if name != "reconstructions"
    ]
    assert sorted(found) == lines_of(folder)
    ((_, config),) = configs
    check_settings(json.loads(config), folder)
    pictures = sorted((place / "trackio" / "media").rglob("*.png"))
    assert sorted(sizes(pictures)) == sorted(sheet_sizes(folder))


class Notes(Logger):
    """A logger of somebody else's."""

    def __init__(self) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {}
        self.numbers: Numbers = {}
        self.pictures: list[tuple[str, list[str], int]] = []

    name = "notes"
    version = 0

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.settings = params

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        assert step is not None
        self.numbers |= {(step, name): value for name, value in metrics.items()}

    def log_image(self, key: str, images: list[str], step: int) -> None:
        self.pictures.append((key, images, step))


def test_loggers_that_a_caller_brings_get_the_same(tmp_path: Path) -> None:
    notes, folder = Notes(), tmp_path / "run"
    own = CSVLogger(tmp_path / "mine")
    pretrain(followed_config(), folder, loggers=[notes, own], stop_after=7)
    assert notes.numbers == recorded(folder)
    check_settings(notes.settings, folder)
    sheet = str(folder / "reconstructions" / "epoch-0001.png")
    assert notes.pictures == [("reconstructions", [sheet], 5)]
    assert Path(own.log_dir, "metrics.csv").is_file()


def test_a_supervised_run_is_followed_to_its_test(tmp_path: Path) -> None:
    notes, folder = Notes(), tmp_path / "run"
    summary = finetune(small_finetune(), folder, loggers=[notes])
    test = {key: value for key, value in notes.numbers.items() if key[1] == "test/accuracy"}
    assert test == {(summary.step, "test/accuracy"): summary.metrics["test/accuracy"]}
    assert {key: value for key, value in notes.numbers.items() if key not in test} == recorded(
        folder
    )


def test_a_tracker_that_comes_late_gets_the_past_and_others_may_leave(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    pretrain(followed_config(), folder, stop_after=7)
    assert pretrain(followed_config("csv", "tensorboard"), folder, resume=True).finished
    test_csv((folder, {}))
    assert "changed since this run began: trainer.loggers: [] -> ['csv', 'tensorboard']" in (
        folder / "log.txt"
    ).read_text("utf-8")
    shutil.rmtree(folder / "csv")
    assert pretrain(followed_config(), folder, resume=True).finished
    assert not (folder / "csv").exists()


def test_a_tracker_that_fails_on_the_way_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = tmp_path / "whole"
    pretrain(followed_config(), whole)

    class Failing(CSVLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            if step == 3:
                raise ConnectionError("nobody answers")
            super().log_metrics(metrics, step)

    monkeypatch.setattr(tracker_kinds, "CSVLogger", Failing)
    assert pretrain(followed_config("csv"), tmp_path / "run").finished
    assert_same_run(whole, tmp_path / "run")
    told = "csv gets nothing more of this run, which goes on: nobody answers"
    assert caplog.text.count(told) == 1
    rows = (tmp_path / "run" / "csv" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 4


def test_a_tracker_that_cannot_be_opened_is_named_and_can_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> CSVLogger:
        raise ConnectionError("nobody answers")

    folder = tmp_path / "run"
    monkeypatch.setattr(tracker_kinds, "CSVLogger", refused)
    with pytest.raises(RuntimeError, match=r"csv cannot follow this run: nobody answers\. .*--res"):
        pretrain(followed_config("csv"), folder)
    assert pretrain(followed_config(), folder, resume=True, stop_after=1).step == 1


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_package_that_is_missing_is_named_with_its_command_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: TrackerName
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    extra = "trackio" if name == "trackio" else "track"
    with pytest.raises(ModuleNotFoundError, match=rf'pip install "crate-mae\[{extra}\]"'):
        pretrain(followed_config(name), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    trainer = TrainerConfig(accelerator="cpu", devices=1, loggers=(name,))
    with pytest.raises(ModuleNotFoundError, match=rf"needs {name}"):
        finetune(replace(small_finetune(), trainer=trainer), tmp_path / "run")


def test_a_folder_of_its_name_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crate_mae.common.extras import check_installed

    (tmp_path / "surely_no_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert find_spec("surely_no_package") is not None
    with pytest.raises(ModuleNotFoundError):
        check_installed("surely_no_package")


def test_wandb_without_a_login_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("wandb")
    import wandb

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(wandb, "login", lambda **_: False)
    with pytest.raises(ValueError, match="WANDB_MODE=offline"):
        pretrain(followed_config("wandb"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("loggers", "message"),
    [
        (("wandbb",), r"knows no 'wandbb' \(did you mean 'wandb'\?\): it is a list of any of"),
        (("csv", "csv"), "names one twice: csv, csv"),
        (("",), "knows no ''"),
        ((3,), "knows no 3"),
    ],
)
def test_what_is_no_tracker_is_refused(loggers: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"trainer.loggers {message}"):
        TrainerConfig(loggers=loggers)


def test_one_name_is_a_list_of_one() -> None:
    single: Any = "csv"
    assert TrainerConfig(loggers=single).loggers == ("csv",)


@pytest.mark.parametrize(
    "content", ['{"mlflow": "../x"}', '{"mlflow": 3}', "[]", "{", '{"wandb": ""}']
)
def test_damaged_identities_are_named(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "run"
    pretrain(followed_config(), folder, stop_after=1)
    (folder / IDENTITIES).write_text(content)
    with pytest.raises(ValueError, match=r"trackers\.json"):
        pretrain(followed_config("csv"), folder, resume=True)


def test_nothing_of_a_short_run_is_lost(tmp_path: Path) -> None:
    """Batches that the images do not fill are adapted, and the loggers are still there."""
    notes = Notes()
    config = followed_config(optim=OptimConfig(epochs=1, batch_size=512, warmup_epochs=0))
    pretrain(config, tmp_path / "run", loggers=[notes])
    assert notes.numbers == recorded(tmp_path / "run") != {}


def test_the_pages_command_and_code_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    page = (ROOT / "docs" / "tracking.md").read_text("utf-8")
    for index in range(20):
        write(f"pictures/{index}.png", (40, 50))
    monkeypatch.chdir(tmp_path)
    ((verb, *words),) = commands_of(page)
    assert main([verb, *words, *SMALL, "--record.measure_epochs", "0"]) == 0
    for made in ("tensorboard", "csv/metrics.csv", "csv/hparams.yaml", "reconstructions"):
        assert (tmp_path / "runs" / "mine" / made).exists()
    assert main(["pretrain", "--resume", "runs/mine", "--trainer.loggers", "[]"]) == 0
    shutil.rmtree(tmp_path / "runs" / "mine")
    (block,) = code_of(page)
    one = OptimConfig(epochs=1, batch_size=32, warmup_epochs=0)
    exec(block, {"config": followed_config(optim=one)})
    assert list((tmp_path / "elsewhere").rglob("metrics.csv"))
