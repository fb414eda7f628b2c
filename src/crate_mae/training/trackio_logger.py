"""Trackio as one of Lightning's loggers, by its own API."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class TrackioLogger(Logger):
    """Logs to a Trackio project, on this machine unless TRACKIO_SPACE_ID names another place."""

    def __init__(self, project: str, name: str, *, resume: bool = False) -> None:
        """`name` is the run's, new in the project, or with `resume` one that is there."""
        super().__init__()
        self._project, self._run_name, self._resume = project, name, resume
        self._experiment: Any = None

    @property
    def name(self) -> str:
        """The project."""
        return self._project

    @property
    def version(self) -> str:
        """The run's name."""
        return self._run_name

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Trackio's own run, begun on first use; ValueError for one to resume that is not there."""
        if self._experiment is None:
            import trackio

            self._experiment = trackio.init(
                project=self._project,
                name=self._run_name,
                resume="must" if self._resume else "never",
                embed=False,
            )
        return self._experiment

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Set values of the run's configuration; Trackio takes them with the first metrics."""
        self.experiment.config.update(vars(params) if isinstance(params, Namespace) else params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics of a step."""
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        """Log pictures: paths, arrays (H, W, channels) of bytes, or Pillow's images."""
        import trackio

        for image in images:
            picture = trackio.Image(Path(image) if isinstance(image, str) else image)
            self.experiment.log({key: picture}, step=step)

    @rank_zero_only
    def finish(self) -> None:
        """Wait until all is stored, and end the run; another session may resume it."""
        if self._experiment is not None:
            self._experiment.finish()
            self._experiment = None
