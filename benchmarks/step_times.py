"""What a training step of each compared model takes, timed in turn within one process."""

from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter, process_time
from typing import Any

import torch

from crate_mae.common.peak_memory import peak_memory
from crate_mae.common.progress import progress_bar
from crate_mae.models.config import Preprocess
from crate_mae.models.constraints import keep_constraints
from crate_mae.training.config import PretrainConfig
from crate_mae.training.parse import parse_pretrain
from crate_mae.training.pretrain import model_of
from matrix import Matrix, words_of
from speed.harness import alternate, speedup, summary
from speed.run_bench import machine
from speed.steps import Job, training_step, waiter
from speed.subjects import Completer


def timed_steps(
    matrix: Matrix,
    *,
    rounds: int = 7,
    threads: int | None = None,
    device: str = "cpu",
    processor_time: bool = False,
    memory: bool = True,
) -> dict[str, Any]:
    """Seconds of a training step of every compared model, round by round, JSON-able.

    Fresh weights, random images and masks, batches as the matrix trains with, float32; loading is
    not part of it. "relative" is how many times as long as the first model's step one takes: the
    median over rounds of the ratio within a round. `threads` is torch's number, None its own.
    `processor_time` takes the time that this process had the processor, on CPUs alone: other work
    on the machine disturbs it less. `memory` measures the peak of a step, too, in a process of its
    own for each model.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(before if threads is None else threads)
    try:
        words: dict[str, dict[str, Any]] = {
            name: {"recipe": matrix.recipe, "settings": {**matrix.settings, **settings}}
            for name, settings in matrix.models.items()
        }
        calls = {name: step_of(**each, device=device) for name, each in words.items()}
        times = alternate(
            calls,
            rounds=rounds,
            wait=waiter(device),
            clock=process_time if processor_time else perf_counter,
            progress=progress_bar("training steps"),
        )
        first = next(iter(times))
        batch = job_of(matrix.recipe, matrix.settings, device)[1].batch
        told = summary(times, images=batch, base=first)
        for name, facts in told.items():
            del facts["speedup"]
            facts["relative"] = speedup(times, name, first).to_dict()
            if memory:
                asked = {**words[name], "device": device}
                facts["memory"] = peak_memory(
                    step_of, asked, device=device, threads=torch.get_num_threads()
                ).to_dict()
        return {
            "machine": machine(),
            "device": device,
            "threads": torch.get_num_threads(),
            "clock": "processor time" if processor_time else "time that passed",
            "batch": batch,
            "first": first,
            "models": told,
        }
    finally:
        torch.set_num_threads(before)


def step_of(*, recipe: str, settings: Mapping[str, Any], device: str) -> Callable[[], object]:
    """A training step of a recipe's model with these settings, kept to its constraints."""
    config, job = job_of(recipe, settings, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = model_of(config, None, Preprocess.identity(config.model))
    module = Completer(model, job.ratio).to(device).train()
    return partial(_kept, training_step(module, *job.inputs(), job), model)


def job_of(recipe: str, settings: Mapping[str, Any], device: str) -> tuple[PretrainConfig, Job]:
    """A recipe with these settings, and its training step as a job."""
    config, _ = parse_pretrain(["--config", recipe, *words_of(settings)])
    job = Job(
        config=config.model,
        work="train",
        batch=config.optim.batch_size,
        ratio=config.masking.ratio,
        device=device,
    )
    return config, job


def _kept(step: Callable[[], object], model: Any) -> None:
    """Take a training step, and keep the model to its constraints, as training does."""
    step()
    keep_constraints(model)
