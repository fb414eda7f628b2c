"""Verbs that train: pretrain, finetune, demo."""

from pathlib import Path
from typing import TYPE_CHECKING

from crate_mae.cli.common import verb_parser

if TYPE_CHECKING:
    from crate_mae.training.session import RunSummary


def pretrain(words: list[str]) -> int:
    """The exit status of `crate-mae pretrain`."""
    from crate_mae.training.parse import parse_pretrain
    from crate_mae.training.run import pretrain as run

    config, options = parse_pretrain(words)
    folder = Path(options["resume"] or options["out"] or Path("runs") / config.name)
    summary = run(
        config,
        folder,
        resume=options["resume"] is not None,
        init_from=options["init_from"],
        stop_after=options["stop_after"],
        command=["crate-mae", "pretrain", *words],
    )
    return _ended("pretrain", summary)


def finetune(words: list[str]) -> int:
    """The exit status of `crate-mae finetune`."""
    from crate_mae.training.callbacks import is_main_process
    from crate_mae.training.finetune import finetune as run
    from crate_mae.training.parse import parse_finetune
    from crate_mae.training.scoring import evaluation_text

    config, options = parse_finetune(words)
    folder = Path(options["resume"] or options["out"] or Path("runs") / config.name)
    summary = run(
        config,
        folder,
        resume=options["resume"] is not None,
        stop_after=options["stop_after"],
        command=["crate-mae", "finetune", *words],
    )
    status = _ended("finetune", summary)
    if is_main_process() and summary.finished:
        print(evaluation_text(folder))
    return status


def _ended(verb: str, summary: "RunSummary") -> int:
    """The exit status of a run, after the main process has said how it ended."""
    from crate_mae.training.callbacks import is_main_process

    folder = summary.folder
    if not is_main_process():
        return 0  # another status would make the launcher kill the main process
    if not summary.finished:
        print(f"stopped at step {summary.step}; continue with crate-mae {verb} --resume {folder}")
        return 143
    numbers = " ".join(f"{key}={value:.4g}" for key, value in summary.metrics.items())
    print(f"finished: folder={folder} step={summary.step} seconds={summary.seconds:.0f} {numbers}")
    return 0


def demo(words: list[str]) -> int:
    """The exit status of `crate-mae demo`."""
    parser = verb_parser("demo", "Pre-train on handwritten digits, probe, reconstruct: minutes.")
    parser.add_argument("--out", default="runs/demo", help="run folder (runs/demo)")
    given = parser.parse_args(words)

    from crate_mae.demo import run_demo

    found = run_demo(Path(given.out))
    print("stopped; run the demo again to go on" if found is None else found)
    return 143 if found is None else 0
