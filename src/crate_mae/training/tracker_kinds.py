"""The places where a run can be followed, each around one of Lightning's loggers."""

import logging
import os
import re
import secrets
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from lightning.pytorch.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from PIL import Image

from crate_mae.training.config import RunConfig
from crate_mae.training.resuming import DATA
from crate_mae.training.run_folder import CONFIG, last_step
from crate_mae.training.trackio_logger import TrackioLogger

PROJECT = "crate-mae"
"""The project or experiment that runs are kept under, unless a tracker's own variable names one."""
SQLITE = "sqlite:///"

logger = logging.getLogger(__name__)


class Tracker(Logger):
    """A place where a run is followed, around one of Lightning's loggers.

    What it cannot take while the run trains is told once; the run goes on without it.
    """

    kind: ClassVar[str]

    def __init__(self, config: RunConfig, folder: Path, identity: str | None) -> None:
        """`identity` is what the tracker knew this run by before; nothing is begun yet."""
        super().__init__()
        self.config, self.folder, self.known = config, folder, identity
        self.inner: Any = None
        self._given_up = False

    def open(self) -> None:
        """Begin the tracked run, or go on in it; raises what the tracker raises."""
        raise NotImplementedError

    @property
    def name(self) -> str | None:
        """What the tracker calls the project."""
        return str(self.inner.name)

    @property
    def version(self) -> str | int | None:
        """What the tracker calls the run."""
        return str(self.inner.version)

    @property
    def identity(self) -> str | None:
        """What goes on in this tracked run after a resume; None where the run folder tells."""
        return None

    @property
    def lacks_the_past(self) -> bool:
        """Whether steps of former sessions are not there yet."""
        return self.known is None

    def follow(self, settings: dict[str, Any]) -> None:
        """Hand over settings and data facts."""
        self.inner.log_hyperparams(settings)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `follow` has handed them over."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Hand over metrics."""
        self.attempt(self.inner.log_metrics, dict(metrics), step)

    def save(self) -> None:
        """Have what waits written."""
        self.attempt(self.inner.save)

    def finalize(self, status: str) -> None:
        """Have what waits written; `close` follows."""
        self.attempt(self.inner.finalize, status)

    def picture(self, name: str, path: Path, step: int) -> None:
        """Hand over a picture that the run has drawn."""
        self.attempt(self.draw, name, path, step)

    def draw(self, name: str, path: Path, step: int) -> None:
        """Hand over a picture; raises what the tracker raises."""
        self.inner.log_image(name, [str(path)], step)

    def close(self, *, finished: bool, failed: bool) -> None:
        """End the tracked run, or leave it where it can be gone on with."""

    def attempt(self, act: Callable[..., None], *arguments: Any, **named: Any) -> None:
        """Do something with the tracker; after the first failure nothing more is tried."""
        if self._given_up:
            return
        try:
            act(*arguments, **named)
        except Exception as error:  # of libraries, networks, databases; training is worth more
            self._given_up = True
            logger.warning(
                "%s gets nothing more of this run, which goes on: %s", self.kind, first_line(error)
            )


class _Curves(Tracker):
    """TensorBoard's files, in the folder `tensorboard`."""

    kind = "tensorboard"

    def open(self) -> None:
        """Make the files' writer, which drops steps that come again."""
        self._new = not (self.folder / "tensorboard").exists()
        self.inner = TensorBoardLogger(
            self.folder,
            name="tensorboard",
            version="",
            purge_step=None if self._new else last_step(self.folder),
            default_hp_metric=False,
        )

    @property
    def lacks_the_past(self) -> bool:
        """Whether there were no files."""
        return self._new

    def draw(self, name: str, path: Path, step: int) -> None:
        """Add an image."""
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self.inner.experiment.add_image(name, pixels, step, dataformats="HWC")


class _Table(Tracker):
    """A CSV file in the folder `csv`, made anew by each session from what the run has recorded."""

    kind = "csv"

    def open(self) -> None:
        """Make the folder."""
        self.inner = CSVLogger(self.folder, name="csv", version="")
        with warnings.catch_warnings():  # of the file that is there, which the past fills again
            warnings.filterwarnings("ignore", message="Experiment logs directory .* exists")
            _ = self.inner.experiment

    def draw(self, name: str, path: Path, step: int) -> None:
        """Do nothing: a table holds no pictures."""


class _WandB(Tracker):
    """A run of Weights & Biases; its files are in the folder `wandb`."""

    kind = "wandb"

    def open(self) -> None:
        """Begin the run, or go on in the one of that id, whatever else this process tracks."""
        import wandb

        mode: Any = os.environ.get("WANDB_MODE")  # W&B refuses what is none
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        run = wandb.init(
            project=project,
            name=self.config.name,
            dir=self.folder,
            id=self.known,
            resume=None if self.known is None else "allow",
            mode=mode,
            reinit="create_new",
        )
        step = "trainer/global_step"  # as WandbLogger names it
        run.define_metric(step)
        run.define_metric("*", step_metric=step, step_sync=True)
        self.inner = WandbLogger(experiment=run, project=project, save_dir=self.folder)

    @property
    def identity(self) -> str | None:
        """The run's id."""
        return str(self.inner.experiment.id)

    def close(self, *, finished: bool, failed: bool) -> None:
        """Finish the run, so that the next one in this process is another."""
        self.inner.experiment.finish(exit_code=int(failed))


class _MLflow(Tracker):
    """A run of MLflow, of MLFLOW_TRACKING_URI or else of `mlflow.db` beside the run folder."""

    kind = "mlflow"

    def open(self) -> None:
        """Begin the run, or go on in the one of that id."""
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        uri = uri or f"{SQLITE}{self.folder.resolve().parent / 'mlflow.db'}"
        base = Path(uri.removeprefix(SQLITE)).resolve().parent  # not the working directory
        self.inner = MLFlowLogger(
            experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT),
            run_name=self.config.name,
            tracking_uri=uri,
            run_id=self.known,
            artifact_location=(base / "mlartifacts").as_uri() if uri.startswith(SQLITE) else None,
        )
        client, identity = self.inner.experiment, self.inner.run_id
        if self.known is not None:
            client.update_run(identity, status="RUNNING")

    @property
    def identity(self) -> str | None:
        """The run's id."""
        return str(self.inner.run_id)

    def follow(self, settings: dict[str, Any]) -> None:
        """Set parameters, which MLflow keeps as they were first, and the whole as files."""
        client, identity = self.inner.experiment, self.inner.run_id
        if not client.get_run(identity).data.params:
            super().follow(settings)
        for name in (CONFIG, DATA):
            client.log_artifact(identity, str(self.folder / name))

    def finalize(self, status: str) -> None:
        """Do nothing: `close` knows whether the run was stopped or failed."""

    def draw(self, name: str, path: Path, step: int) -> None:
        """Log an image of that step."""
        with Image.open(path) as image:
            self.inner.experiment.log_image(self.inner.run_id, image, key=name, step=step)

    def close(self, *, finished: bool, failed: bool) -> None:
        """Set the status: finished, failed, or killed for a run that was stopped."""
        status = "FAILED" if failed else "FINISHED" if finished else "KILLED"
        self.inner.experiment.set_terminated(self.inner.run_id, status)


class _Trackio(Tracker):
    """A run of a Trackio project, below TRACKIO_DIR."""

    kind = "trackio"

    def open(self) -> None:
        """Begin the run, under a name that no other has, or go on in the one of that name."""
        plain = re.sub(r"\W+", "-", self.config.name, flags=re.ASCII).strip("-_") or "run"
        self.inner = TrackioLogger(
            os.environ.get("TRACKIO_PROJECT", PROJECT),
            self.known or f"{plain[:64]}-{secrets.token_hex(4)}",
            resume=self.known is not None,
        )
        _ = self.inner.experiment

    @property
    def identity(self) -> str | None:
        """The run's name."""
        return str(self.inner.version)

    def close(self, *, finished: bool, failed: bool) -> None:
        """Wait until all is stored."""
        self.inner.finish()


KINDS: dict[str, type[Tracker]] = {
    kind.kind: kind for kind in (_Curves, _Table, _WandB, _MLflow, _Trackio)
}


def first_line(error: Exception) -> str:
    """What an error says first, or its kind."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
