"""Parts of features computed by the workers of a Ray cluster: Ray Data, one part a call.

Every worker holds the same `PartExtractor` that a single process holds and writes into the same
folder, which all machines see, as they see images and weights. A part is written whole or not at
all, and one that is there is not computed again: a worker or machine that is lost loses nothing and
doubles nothing.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from crate_mae.common.extras import check_installed
from crate_mae.common.progress import Progress
from crate_mae.evaluation.extracting import Extraction, PartExtractor
from crate_mae.evaluation.feature_parts import FeatureParts
from crate_mae.evaluation.part_files import PartFacts
from crate_mae.evaluation.part_settings import Part

ATTEMPTS = 4
"""How often a part is begun whose workers are lost: it may be what ends them."""
MOST_BLOCKS = 1000
"""Blocks that Ray Data keeps account of; a block is some parts, one after the other."""


class PartWorker:
    """Computes parts of a folder by their numbers: what every worker of the cluster holds.

    Weights and images are opened with the first part, in the folder `place`.
    """

    def __init__(
        self, wanted: Extraction, folder: str, *, place: str, device: str, threads: int
    ) -> None:
        self.wanted, self.folder, self.place = wanted, folder, place
        self.device, self.threads = device, threads
        self._open: tuple[PartExtractor, FeatureParts] | None = None

    def __call__(self, batch: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
        """Each part's number, and why it could not be computed: "" for one that is there now."""
        numbers = [int(number) for number in batch["number"]]
        return {"number": numbers, "failure": [self._failure(number) for number in numbers]}

    def compute(self, number: int) -> None:
        """Write a part into the folder, unless it is there.

        Raises what opening and writing raise, and ValueError where this machine does not see the
        folder, or sees other weights or images than it is of.
        """
        if self._open is None:
            self._open = self._opened()
        extractor, folder = self._open
        part = folder.parts[number]
        if folder.is_there(part):  # written by a worker that was lost before it could say so
            return
        for _ in extractor.write(folder, [part]):
            pass

    def _failure(self, number: int) -> str:
        try:
            self.compute(number)
        except Exception as error:
            # As a value: the cluster would try again what fails again, and wrap the reason up.
            return f"{socket.gethostname()}: {str(error) or type(error).__name__}"
        return ""

    def _opened(self) -> tuple[PartExtractor, FeatureParts]:
        os.chdir(self.place)  # what was named by a relative path is named so here, too
        torch.set_num_threads(self.threads)
        folder = FeatureParts.open(self.folder)
        extractor = self.wanted.open(self.device)
        made = folder.settings
        found = extractor.settings(shards=made.shards, part_size=made.part_size)
        if differ := found.differences(made):
            raise ValueError(f"this machine sees something else: {', '.join(differ)}")
        return extractor, folder


def write_on_ray(
    wanted: Extraction,
    folder: FeatureParts,
    parts: Sequence[Part],
    *,
    device: str = "auto",
    workers: int | None = None,
    cpus: int = 1,
    progress: Progress | None = None,
) -> Iterator[PartFacts]:
    """What each of these parts says of itself, once a worker of a Ray cluster has written it.

    The cluster is that of `RAY_ADDRESS`, the one that runs on this machine, or a new one of this
    machine alone. There are `workers` of `cpus` CPUs each, and a GPU where `device` is "cuda" or,
    for "auto", where the cluster has any; by default as many as there is room for. Parts come in
    the order in which they are done. Folder, weights and images must be seen by all machines under
    the same names, and the package be installed there.

    Raises ModuleNotFoundError without Ray, ValueError where there is no room for a worker and for
    other words, and RuntimeError naming the machine where a part could not be computed: the other
    parts that were written stay.
    """
    check_installed("ray")
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda on Ray, not {device!r}")
    for name, number in (("workers", workers), ("cpus", cpus)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
    if not parts:
        return
    by_number = {part.number: part for part in parts}
    total, done = sum(part.stop - part.start for part in parts), 0
    with _cluster() as ray:
        gpu = device != "cpu" and (device == "cuda" or _room(ray, cpus, gpu=True) > 0)
        room = _room(ray, cpus, gpu=gpu)
        if workers is None and not room:
            raise ValueError(
                f"no machine of the Ray cluster has {cpus} CPUs{' and a GPU' if gpu else ''} for a"
                " worker: ask for fewer CPUs, or say how many workers to wait for"
            )
        readers = wanted.workers if wanted.workers is not None else cpus if gpu else 0
        numbers = _computed(
            list(by_number),
            {
                "wanted": replace(wanted, workers=readers),
                "folder": str(Path(folder.folder).absolute()),
                "place": str(Path.cwd()),
                "device": "cuda" if gpu else "cpu",
                "threads": cpus,
            },
            workers=min(workers or room, len(parts)),
            resources={"num_cpus": cpus, **({"num_gpus": 1} if gpu else {})},
        )
        for number in numbers:
            part = by_number[number]
            try:
                facts = folder.facts(part)
            except FileNotFoundError as error:
                raise RuntimeError(
                    f"a Ray worker has written {folder.path(part)}, and it is not there: all"
                    " machines must see the same folder of that name"
                ) from error
            done += part.stop - part.start
            if progress is not None:
                progress(done, total)
            yield facts


def _computed(
    numbers: Sequence[int],
    given: Mapping[str, Any],
    *,
    workers: int,
    resources: Mapping[str, int],
) -> Iterator[int]:
    """The numbers of the parts as they are done; RuntimeError for one that cannot be computed."""
    from ray.data import ActorPoolStrategy, from_items
    from ray.exceptions import RayError

    blocks = min(len(numbers), MOST_BLOCKS)
    rows = from_items([{"number": number} for number in numbers], override_num_blocks=blocks)
    done = rows.map_batches(
        PartWorker,
        fn_constructor_kwargs=dict(given),
        batch_size=1,
        compute=ActorPoolStrategy(size=workers),
        max_restarts=-1,
        max_task_retries=ATTEMPTS - 1,
        **resources,
    )
    try:
        for row in done.iter_rows():
            if row["failure"]:
                raise RuntimeError(f"a Ray worker on {row['failure']}")
            yield int(row["number"])
    except RayError as error:
        reason = next((line for line in str(error).splitlines()[::-1] if line.strip()), "")
        raise RuntimeError(f"Ray has given up: {type(error).__name__}: {reason.strip()}") from error


def _room(ray: Any, cpus: int, *, gpu: bool) -> int:
    """How many workers of so many CPUs, each with a GPU or not, the machines have room for."""
    room = 0
    for node in ray.nodes():
        has = node["Resources"] if node["Alive"] else {}
        fit = int(has.get("CPU", 0) // cpus)
        room += min(fit, int(has.get("GPU", 0))) if gpu else fit
    return room


@contextlib.contextmanager
def _cluster() -> Iterator[Any]:
    """Ray, connected; without its bars and lines, and disconnected at the end if it was before."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read by a cluster that starts here
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars, context.print_on_execution_start
    was_connected = ray.is_initialized()
    if not was_connected:
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
        except ConnectionError as error:
            raise ConnectionError(f"there is no Ray cluster to connect to: {error}") from error
    context.enable_progress_bars, context.print_on_execution_start = False, False
    try:
        yield ray
    finally:
        context.enable_progress_bars, context.print_on_execution_start = before
        if not was_connected:
            ray.shutdown()
