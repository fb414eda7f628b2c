"""A matrix of recipes as jobs: what is run, in which order, and what each needs from others."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from crate_mae.common.files import write_atomically
from crate_mae.training.run_folder import load_config_values, load_settings

Settings = Mapping[str, Any]
HERE = Path(__file__).parent

ALTER = "alter"
"""The setting of a variant that changes an equation of the layers: benchmarks/altered.py."""

EARLIER = "earlier.json"
"""The file in a matrix' folder that holds the record of an earlier one, whose runs may be gone."""

TIMES = "times.json"
"""The file in a matrix' folder that holds how long training steps take: step_times.py."""

MEASURES = {
    "probe": ["probe"],
    "knn": ["knn"],
    "probe-50": ["probe", "--shots", "50", "--seeds", "3"],
    "probe-500": ["probe", "--shots", "500"],
}
"""What is measured on frozen features of every compared run: a name, and words for the command."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One command whose outcome is a file."""

    name: str
    outcome: Path
    """It exists once the job is done."""
    command: Callable[[], list[str]]
    """Asked when the job starts, after everything it needs is done."""
    needs: tuple[str, ...] = ()
    """Jobs that must be done before."""
    after: tuple[str, ...] = ()
    """Jobs that must have ended before, well or not."""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """The file that says what is compared."""

    recipe: str
    settings: Settings
    models: Mapping[str, Settings]
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    search: Settings | None
    """Settings of its short runs; None for no search."""
    ablation: Settings
    variants: Mapping[str, Settings]
    finetune_recipe: str
    shares: Mapping[float, Settings]
    completions: int
    measured_on: int | None
    """Training images that probes and neighbours of the compared models learn from; None: all."""
    values: Mapping[str, Any] = field(repr=False)
    """The file itself, for the record."""


def load_matrix(path: Path) -> Matrix:
    """The matrix of a YAML file; ValueError naming what it lacks or what nobody reads."""
    values = load_settings(path)
    sections: dict[str, set[str]] = {
        "search": {"rates", "settings"},
        "ablations": {"settings", "variants"},
        "finetune": {"recipe", "shares"},
        "measure": {"completions"},
    }
    known = {"recipe", "settings", "models", "seeds", *sections}
    faults = _differences(values, known, "")
    for name, keys in sections.items():
        found = values.get(name) or {}
        optional = {"limit"} & set(found) if name == "measure" else set()
        faults += _differences(found, keys | optional, f"{name}.")
    if faults:
        raise ValueError(f"{path}: {'; '.join(faults)}")
    if not values["models"] or not values["seeds"] or not values["search"]["rates"]:
        raise ValueError(f"{path}: models, seeds and search.rates must not be empty")
    if values["search"]["settings"] is None and len(values["search"]["rates"]) > 1:
        raise ValueError(f"{path}: search.settings may be null where search.rates holds one alone")
    return Matrix(
        recipe=values["recipe"],
        settings=values["settings"],
        models={name: settings or {} for name, settings in values["models"].items()},
        seeds=tuple(values["seeds"]),
        rates=tuple(values["search"]["rates"]),
        search=values["search"]["settings"],
        ablation=values["ablations"]["settings"],
        variants={name: changes or {} for name, changes in values["ablations"]["variants"].items()},
        finetune_recipe=values["finetune"]["recipe"],
        shares={float(share): rest for share, rest in values["finetune"]["shares"].items()},
        completions=values["measure"]["completions"],
        measured_on=values["measure"].get("limit"),
        values=values,
    )


def jobs_of(matrix: Matrix, out: Path, source: str) -> list[Job]:
    """Every job of a matrix below the folder `out` on the images of a data address.

    In the order in which they are worth having: the search, the ablations, the comparison with its
    first seed and what it measures, fine-tuning, further seeds.
    """
    return [
        *_search(matrix, out, source),
        *_ablations(matrix, out, source),
        *_compared(matrix, out, source, matrix.seeds[0]),
        *_finetuned(matrix, out, source, matrix.seeds[0]),
        *(
            job
            for seed in matrix.seeds[1:]
            for job in (
                *_compared(matrix, out, source, seed),
                *_finetuned(matrix, out, source, seed),
            )
        ),
    ]


def chosen_rate(matrix: Matrix, out: Path, model: str) -> float:
    """The base learning rate of the search with the lowest final loss on held-out images.

    Without settings of a search, the only rate is taken unsearched.
    """
    if matrix.search is None:
        return matrix.rates[0]

    def loss(rate: float) -> float:
        path = search_folder(out, model, rate) / "summary.json"
        if not path.exists():  # it diverged: a rate that was tried and found too high
            return math.inf
        found = float(json.loads(path.read_text())["metrics"]["val/loss"])
        return found if math.isfinite(found) else math.inf

    best = min(matrix.rates, key=loss)
    if loss(best) == math.inf:
        raise ValueError(f"no learning rate of {model} came to a finite loss")
    return best


def superseded(matrix: Matrix, out: Path) -> list[str]:
    """Names of finished runs whose rate the search, extended since, no longer prefers."""
    first = next(iter(matrix.models))

    def searched(model: str) -> bool:
        found = (search_folder(out, model, rate) / "summary.json" for rate in matrix.rates)
        return any(path.exists() for path in found)

    folders = [
        *((m, compared_folder(out, m, seed)) for m in matrix.models for seed in matrix.seeds),
        *((first, ablation_folder(out, variant)) for variant in matrix.variants),
    ]
    return [
        _name(folder)
        for model, folder in folders
        if (folder / "summary.json").exists()
        and searched(model)
        and load_config_values(folder)["optim"]["base_lr"] != chosen_rate(matrix, out, model)
    ]


def searched_before(matrix: Matrix, out: Path, losses: Mapping[str, Mapping[str, Any]]) -> None:
    """Losses of an earlier search, by model and rate, count as tried in `out` then."""
    for model in matrix.models:
        for rate in matrix.rates:
            loss = losses.get(model, {}).get(f"{rate:g}")
            path = search_folder(out, model, rate) / "summary.json"
            if loss is not None and not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, json.dumps({"metrics": {"val/loss": loss}}) + "\n")


def search_folder(out: Path, model: str, rate: float) -> Path:
    """The run folder of one rate of a model's search."""
    return out / "search" / f"{model}-{rate:g}"


def compared_folder(out: Path, model: str, seed: int) -> Path:
    """The run folder of a compared model."""
    return out / "compared" / f"{model}-{seed}"


def ablation_folder(out: Path, variant: str) -> Path:
    """The run folder of a variant."""
    return out / "ablations" / variant


def finetune_folder(out: Path, model: str, share: float, seed: int) -> Path:
    """The run folder of a model fine-tuned with a share of the labels; "scratch" had no weights."""
    return out / "finetuned" / f"{model}-{share:g}-{seed}"


def _search(matrix: Matrix, out: Path, source: str) -> Iterator[Job]:
    if matrix.search is None:
        return
    for model, settings in matrix.models.items():
        for rate in matrix.rates:
            chosen = {**matrix.settings, **settings, **matrix.search, "optim.base_lr": rate}
            folder = search_folder(out, model, rate)
            yield _pretraining(matrix, folder, source, partial(dict, chosen), after=())


def _searched(matrix: Matrix, out: Path, model: str) -> tuple[str, ...]:
    """Names of the jobs that search a model's rate."""
    if matrix.search is None:
        return ()
    return tuple(_name(search_folder(out, model, rate)) for rate in matrix.rates)


def _compared(matrix: Matrix, out: Path, source: str, seed: int) -> Iterator[Job]:
    runs = []
    for model, settings in matrix.models.items():
        folder = compared_folder(out, model, seed)
        merged = {**matrix.settings, **settings, "seed": seed}
        searched = _searched(matrix, out, model)
        runs.append(folder)
        yield _pretraining(
            matrix,
            folder,
            source,
            partial(_at_chosen_rate, matrix, out, model, merged),
            after=searched,
        )
    for place, folder in enumerate(runs):
        # Baselines do not depend on the training, so they are measured beside one model alone.
        beside = [] if place == 0 and seed == matrix.seeds[0] else ["--no-baselines"]
        few = [] if matrix.measured_on is None else ["--limit", str(matrix.measured_on)]
        yield from _measured(matrix, folder, source, MEASURES, extra=[*beside, *few])


def _ablations(matrix: Matrix, out: Path, source: str) -> Iterator[Job]:
    model, settings = next(iter(matrix.models.items()))
    searched = _searched(matrix, out, model)
    for variant, changes in matrix.variants.items():
        folder = ablation_folder(out, variant)
        merged = {**matrix.settings, **settings, **matrix.ablation, **changes}
        alteration = merged.pop(ALTER, None)
        yield _pretraining(
            matrix,
            folder,
            source,
            partial(_at_chosen_rate, matrix, out, model, merged),
            after=searched,
            alteration=alteration,
        )
        limits = ["--no-baselines", "--limit", "10000"]
        yield from _measured(
            matrix,
            folder,
            source,
            {"probe": ["probe"]},
            extra=limits,
            alteration=alteration,
        )


def _finetuned(matrix: Matrix, out: Path, source: str, seed: int) -> Iterator[Job]:
    for share, settings in matrix.shares.items():
        for model in (*matrix.models, "scratch"):
            folder = finetune_folder(out, model, share, seed)
            first = compared_folder(out, next(iter(matrix.models)), seed)
            origin = first if model == "scratch" else compared_folder(out, model, seed)
            start = ["--from-scratch", str(origin)] if model == "scratch" else [str(origin)]
            merged = {**settings, "data.share": share, "seed": seed, "data.source": source}

            def command(
                folder: Path = folder, start: list[str] = start, merged: Settings = merged
            ) -> list[str]:
                begun = (folder / "config.yaml").exists()
                words = ["--resume", str(folder)] if begun else ["--out", str(folder)]
                origin = [] if begun else [*start, "--config", matrix.finetune_recipe]
                return _cli("finetune", *origin, *words_of({} if begun else merged), *words)

            yield Job(
                name=_name(folder),
                outcome=folder / "evaluation.json",
                command=command,
                needs=(_name(origin),),
            )


def _pretraining(
    matrix: Matrix,
    folder: Path,
    source: str,
    settings: Callable[[], Settings],
    *,
    after: tuple[str, ...],
    alteration: str | None = None,
) -> Job:
    def command() -> list[str]:
        if (folder / "config.yaml").exists():
            words = ["--resume", str(folder)]
        else:
            options = words_of({"data.source": source, **settings()})
            words = ["--config", matrix.recipe, *options, "--out", str(folder)]
        return _cli("pretrain", *words, alteration=alteration)

    return Job(name=_name(folder), outcome=folder / "summary.json", command=command, after=after)


def _measured(
    matrix: Matrix,
    folder: Path,
    source: str,
    measures: Mapping[str, list[str]],
    *,
    extra: list[str],
    alteration: str | None = None,
) -> Iterator[Job]:
    run = _name(folder)
    for name, (verb, *options) in measures.items():
        target = folder / f"{name}.json"
        words = [verb, str(folder), source, *options, *extra, "--json", str(target)]
        command = partial(_cli, *words, alteration=alteration)
        yield Job(name=f"{run}/{name}", outcome=target, command=command, needs=(run,))
    target = folder / "completion.json"
    script = [sys.executable, str(HERE / "quality.py"), "complete", str(folder), source]
    count = ["--count", str(matrix.completions), "--json", str(target)]
    altered = [] if alteration is None else ["--alter", alteration]
    yield Job(
        name=f"{run}/completion",
        outcome=target,
        command=lambda: [*script, *count, *altered],
        needs=(run,),
    )


def _at_chosen_rate(matrix: Matrix, out: Path, model: str, settings: Settings) -> Settings:
    """Settings at the rate of the search, unless they name their own."""
    return {"optim.base_lr": chosen_rate(matrix, out, model), **settings}


def _name(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def _cli(*words: str, alteration: str | None = None) -> list[str]:
    if alteration is not None:
        return [sys.executable, str(HERE / "altered.py"), alteration, *words]
    return [sys.executable, "-m", "crate_mae", *words]


def words_of(settings: Settings) -> list[str]:
    """Settings as words of a command line."""
    return [
        word
        for key, value in settings.items()
        for word in (f"--{key}", value if isinstance(value, str) else json.dumps(value))
    ]


def _differences(values: Any, known: set[str], prefix: str) -> list[str]:
    if not isinstance(values, dict):
        return [f"{prefix.rstrip('.')} must hold named values"]
    return [f"{prefix}{key} is missing" for key in sorted(known - set(values))] + [
        f"{prefix}{key} is not known" for key in sorted(set(values) - known)
    ]
