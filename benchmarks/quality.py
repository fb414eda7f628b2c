"""CRATE-MAE, its ViT-MAE twins and its variants, compared unattended: python benchmarks/quality.py.

run SOURCE --out DIR       everything of the matrix, as far as time allows; call again to go on
time DIR                   how long a training step of each compared model takes
complete RUN SOURCE        PSNR of one run's completions of test images
table DIR --json FILE      one table of all that is done, with curves
"""

import argparse
import copy
import functools
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from altered import ALTERATIONS, alter
from crate_mae.cli.options import Output, new_file, write_json
from crate_mae.evaluation.backbones import load_masked_autoencoder
from crate_mae.evaluation.reconstruction import reconstruct_source
from crate_mae.sources.address import open_source
from crate_mae.sources.base import random_subset
from crate_mae.sources.webdataset import StreamSource
from matrix import EARLIER, TIMES, Job, jobs_of, load_matrix, searched_before, superseded
from pool import run_jobs
from records import parser_of

logger = logging.getLogger("benchmarks")
HERE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 all done, 1 something failed, 143 stopped before the end."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logger.setLevel(logging.INFO)
    given = _parser().parse_args(arguments)
    try:
        return int(given.run(given))
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(given: argparse.Namespace) -> int:
    matrix = load_matrix(given.matrix)
    open_source(given.source, split="train")  # before any work
    recorded = given.out / "matrix.json"
    jobs = _wanted(
        jobs_of(matrix, given.out, given.source), given.leave_out or [], go_on=given.go_on
    )
    values = json.loads(json.dumps({"matrix": matrix.values, "source": given.source}))
    old = json.loads(recorded.read_text()) if recorded.exists() else values
    if old["source"] != given.source or not _extends(values["matrix"], old["matrix"]):
        raise ValueError(
            f"{given.out} was begun with another matrix or source: name another folder with --out,"
            f" or give back what {recorded} holds; only additions are taken"
        )
    if given.earlier is not None:
        earlier = _record(given.earlier)
        kept = given.out / EARLIER
        if kept.exists() and json.loads(kept.read_text()) != earlier:
            raise ValueError(f"{kept} is the record of another comparison: one is taken alone")
        if not _extends(values["matrix"], earlier["matrix"]):
            raise ValueError(f"{given.earlier} tells of another matrix: only additions are taken")
        write_json(kept, earlier)
        searched_before(matrix, given.out, earlier["search"])
    write_json(recorded, values)
    logger.info("%d jobs, %d done before", len(jobs), sum(job.outcome.exists() for job in jobs))
    outcome = run_jobs(
        jobs,
        workers=given.workers,
        threads=given.threads,
        logs=given.out / "logs",
        minutes=given.minutes,
    )
    print(f"{len(outcome.done)} of {len(jobs)} jobs done")
    for name, log in outcome.failed.items():
        print(f"failed: {name}; its output: {log}")
    for name in superseded(matrix, given.out):
        print(
            f"{name} was trained at a rate that the search no longer prefers: to train it again,"
            " move its folder, and those fine-tuned from it, away"
        )
    if outcome.skipped:
        more = ", ..." if outcome.skipped[5:] else ""
        print(f"{len(outcome.skipped)} not run: {', '.join(outcome.skipped[:5])}{more}")
    if outcome.stopped:
        print("stopped before the end; the same command goes on")
        return 143
    return 1 if outcome.failed else 0


def _extends(new: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    """Whether all that a matrix said before still holds; more models, seeds, rates do no harm."""
    before, now = copy.deepcopy(dict(old)), copy.deepcopy(dict(new))
    for mine, theirs, key in ((now, before, "seeds"), (now["search"], before["search"], "rates")):
        if not set(theirs[key]) <= set(mine[key]):
            return False
        mine[key] = theirs[key]
    parts = (("models",), ("ablations", "variants"), ("finetune", "shares"))
    for path in parts:
        mine, theirs = (functools.reduce(dict.__getitem__, path, each) for each in (now, before))
        for name in set(mine) - set(theirs):
            del mine[name]
    return bool(before == now)


def _record(path: Path) -> dict[str, Any]:
    """What `table --json` wrote; ValueError for anything else."""
    found = json.loads(path.read_text())
    measured = {"search", "compared", "baselines", "ablations", "finetuned"}
    if not isinstance(found, dict) or not {"date", "machine", "matrix", *measured} <= set(found):
        raise ValueError(f"{path} is no record of a comparison: name one that `table --json` wrote")
    return found


def _wanted(jobs: list[Job], left_out: list[str], *, go_on: bool = False) -> list[Job]:
    """The jobs whose names begin with none of these, nor need one that does and is not done.

    What comes after one that is left out, as a run after the rates of its search, is left out too,
    unless it should `go_on`.
    """
    kept: list[Job] = []
    gone: set[str] = set()
    for job in jobs:
        unwanted = any(job.name.startswith(part) for part in left_out)
        lacking = gone & ({*job.needs} if go_on else {*job.needs, *job.after})
        if (unwanted or lacking) and not job.outcome.exists():
            gone.add(job.name)
        else:
            kept.append(replace(job, after=tuple(name for name in job.after if name not in gone)))
    return kept


def _complete(given: argparse.Namespace) -> int:
    from tabulate_quality import flops_per_image_of

    output = Output(given.json)
    if given.alter is not None:
        alter(given.alter)
    model = load_masked_autoencoder(given.run_folder)
    source = open_source(given.source, split="test")
    if isinstance(source, StreamSource):
        raise ValueError(f"{given.source} is a stream: name a source whose images can be chosen")
    source = random_subset(source, given.count)
    found, _ = reconstruct_source(model, source, ratio=given.ratio, batch_size=128)
    facts = {
        "images": len(found.mse),
        "ratio": given.ratio,
        "mse": float(found.mse.mean()),
        "psnr": float(found.psnr.mean()),
        "gflops_per_image": flops_per_image_of(given.run_folder, model) / 1e9,
    }
    output.say(", ".join(f"{name} {value:.4g}" for name, value in facts.items()))
    output.write(facts)
    return 0


def _time(given: argparse.Namespace) -> int:
    from step_times import timed_steps

    matrix = load_matrix(given.matrix)
    target = given.out / TIMES
    if not given.out.is_dir():
        raise FileNotFoundError(f"{given.out} is no folder: run the matrix there first")
    if target.exists() and not given.again:
        raise FileExistsError(f"{target} is there already: --again replaces it")
    if given.processor_time and given.device != "cpu":
        raise ValueError("--processor-time is of CPUs: on other devices time passes elsewhere")
    found = timed_steps(
        matrix,
        rounds=given.rounds,
        threads=given.threads,
        device=given.device,
        processor_time=given.processor_time,
        memory=not given.no_memory,
    )
    write_json(target, found)
    for name, facts in found["models"].items():
        ratio = facts["relative"]
        print(f"{name}: {ratio['median']:.2f} x ({ratio['lower']:.2f} to {ratio['upper']:.2f})")
    return 0


def _table(given: argparse.Namespace) -> int:
    from tabulate_quality import write_table

    write_table(
        given.out,
        matrix_file=given.matrix,
        json_file=new_file(given.json),
        figure=new_file(given.figure),
        variants=new_file(given.variants),
        docs=given.docs,
        place=given.place,
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    verbs = parser.add_subparsers(required=True)
    run = verbs.add_parser(
        "run", allow_abbrev=False, help="everything of the matrix, as far as time allows"
    )
    run.set_defaults(run=_run)
    run.add_argument("source", help="address of CIFAR-10 with both splits, such as parquet:PATH")
    run.add_argument("--out", type=Path, required=True, help="folder for all runs; goes on there")
    run.add_argument("--matrix", type=Path, default=HERE / "quality.yaml")
    run.add_argument("--workers", type=int, default=2, help="jobs side by side (2)")
    run.add_argument("--threads", type=int, default=1, help="threads of each job (1)")
    run.add_argument("--minutes", type=float, help="stop after so long; running jobs save first")
    run.add_argument("--leave-out", nargs="*", metavar="PREFIX", help="jobs whose names begin so")
    run.add_argument(
        "--go-on",
        action="store_true",
        help="do not wait for rates of a search that are left out: the best of the others counts",
    )
    run.add_argument(
        "--earlier",
        type=Path,
        metavar="JSON",
        help="a record of the same images that `table --json` wrote: its search counts, and the"
        " table shows all of it",
    )
    time = verbs.add_parser(
        "time", allow_abbrev=False, help="how long a training step of each compared model takes"
    )
    time.set_defaults(run=_time)
    time.add_argument("out", type=Path, help="the matrix' folder; its table shows the times then")
    time.add_argument("--matrix", type=Path, default=HERE / "quality.yaml")
    time.add_argument("--rounds", type=int, default=7, help="rounds of all models in turn (7)")
    time.add_argument("--threads", type=int, help="threads of torch (its own number)")
    time.add_argument("--device", default="cpu", help="cpu, cuda, ... (cpu)")
    time.add_argument(
        "--processor-time", action="store_true", help="on machines that do other work, too"
    )
    time.add_argument("--no-memory", action="store_true", help="leave out the memory of a step")
    time.add_argument("--again", action="store_true", help="replace times that are there")
    complete = verbs.add_parser(
        "complete", allow_abbrev=False, help="PSNR of one run's completions"
    )
    complete.set_defaults(run=_complete)
    complete.add_argument("run_folder", type=Path)
    complete.add_argument("source")
    complete.add_argument("--count", type=int, default=2000, help="test images (2000)")
    complete.add_argument("--ratio", type=float, default=0.75, help="share removed (0.75)")
    complete.add_argument("--alter", choices=ALTERATIONS, help="the run's layers were altered so")
    complete.add_argument("--json")
    table = verbs.add_parser("table", allow_abbrev=False, help="one table of all that is done")
    table.set_defaults(run=_table)
    table.add_argument("out", type=Path)
    table.add_argument("--matrix", type=Path, default=HERE / "quality.yaml")
    table.add_argument("--json", help="also everything as JSON (new file)")
    table.add_argument("--figure", help="also the curves as a picture (new file)")
    table.add_argument("--variants", help="also the variants' losses as a picture (new file)")
    table.add_argument("--docs", type=Path, help="also between the markers of a Markdown page")
    table.add_argument("--place", default="quality", help="name of these markers (quality)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
