"""Verbs that train, what goes before and after: pretrain, finetune, plan, report, compare, demo."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from crate_mae.cli.early import check_run_words, check_words
from crate_mae.cli.options import (
    CommandParser,
    Output,
    add_device,
    add_json,
    add_overwrite,
    counter_for,
    device_of,
    refuse_beside,
    time_span,
    verb_parser,
)
from crate_mae.common.files import user_path
from crate_mae.common.hints import option_names

if TYPE_CHECKING:
    from crate_mae.training.parse import SettingsParser
    from crate_mae.training.session import RunSummary


def pretrain_parser() -> "SettingsParser":
    """The parser of `crate-mae pretrain`."""
    from crate_mae.training import parse

    return parse.pretrain_parser()


def pretrain(argv: list[str]) -> int:
    """The exit status of `crate-mae pretrain`."""
    check_run_words("pretrain", argv)
    from crate_mae.training.parse import parse_pretrain
    from crate_mae.training.pretrain import pretrain as run

    config, options = parse_pretrain(argv)
    folder = user_path(options["resume"] or options["out"] or Path("runs") / config.name)
    summary = run(
        config,
        folder,
        resume=options["resume"] is not None,
        init_from=options["init_from"],
        stop_after=options["stop_after"],
        command=["crate-mae", "pretrain", *argv],
    )
    return _ended("pretrain", summary)


def finetune_parser() -> "SettingsParser":
    """The parser of `crate-mae finetune`, without the weights that may come first."""
    from crate_mae.training import parse

    return parse.finetune_parser()


def finetune(argv: list[str]) -> int:
    """The exit status of `crate-mae finetune`."""
    check_run_words("finetune", argv)
    from crate_mae.training.finetune import finetune as run
    from crate_mae.training.parse import parse_finetune

    config, options = parse_finetune(argv)
    folder = user_path(options["resume"] or options["out"] or Path("runs") / config.name)
    summary = run(
        config,
        folder,
        resume=options["resume"] is not None,
        stop_after=options["stop_after"],
        command=["crate-mae", "finetune", *argv],
    )
    return _ended("finetune", summary)


def _ended(verb: str, summary: "RunSummary") -> int:
    """The exit status of a run, after the main process has said how it ended."""
    from crate_mae.training.callbacks import is_main_process

    folder = summary.folder
    if not is_main_process():
        return 0  # another status would make the launcher kill the main process
    if not summary.finished:
        print(f"stopped at step {summary.step}; continue with crate-mae {verb} --resume {folder}")
        # To torchrun any other status is a failure, after which it kills and reports.
        return 0 if "TORCHELASTIC_RUN_ID" in os.environ else 143
    numbers = " ".join(f"{key}={value:.4g}" for key, value in summary.metrics.items())
    print(f"finished: folder={folder} step={summary.step} seconds={summary.seconds:.0f} {numbers}")
    if verb == "finetune":
        from crate_mae.training.final_test import evaluation_text

        print(evaluation_text(folder))

    from crate_mae.evaluation.answers import answers_text
    from crate_mae.report.summary import run_answers
    from crate_mae.runs.contents import read_run

    if told := answers_text(run_answers(read_run(folder))):
        print(told)
    return 0


def plan_parser() -> CommandParser:
    """The parser of `crate-mae plan`, whose further options are settings of the run."""
    parser = verb_parser(
        "plan",
        "Steps, operations, memory, time and disk of a run, before it starts, on this machine."
        " Settings are given as for crate-mae pretrain and finetune: --optim.batch_size 64 ...",
    )
    parser.add_argument("config", help="a recipe file, a shipped recipe's name or a run folder")
    parser.add_argument("--num-images", type=int, metavar="N", help="training images (counted)")
    parser.add_argument(
        "--no-measure", action="store_true", help="arithmetic alone, without real steps"
    )
    parser.add_argument(
        "--within", type=time_span, metavar="TIME",
        help="choose sizes, epochs and warm-up that fit this machine in a time such as 10m, 1h or"
        " 8h, and print the command",
    )  # fmt: skip
    parser.add_argument(
        "--tflops",
        type=float,
        metavar="N",
        help="also the hours at this achieved rate of one device, in 10^12 operations a second",
    )
    add_json(parser, "the plan")
    return parser


def plan(argv: list[str]) -> int:
    """The exit status of `crate-mae plan`."""
    parser = plan_parser()
    given, settings = parser.parse_known_args(argv)
    before = argv[argv.index(given.config) - 1] if argv.index(given.config) else ""
    if before in settings and before.startswith("--") and "=" not in before:
        # What was taken for the recipe is the value of a setting.
        parser.error(f"the recipe comes first: crate-mae plan RECIPE {before} {given.config} ...")
    plain = [word for word in settings if "." not in word.partition("=")[0]]
    parser.refuse_unknown(
        plain, more=[*option_names(pretrain_parser()), *option_names(finetune_parser())]
    )

    if given.within is not None and given.no_measure:
        parser.error("--within measures real steps: leave --no-measure out")

    from crate_mae.plan.plan import plan_run
    from crate_mae.plan.plan_text import fitting_text, plan_text
    from crate_mae.plan.recipe import check_whole_command, parse_recipe
    from crate_mae.plan.within import run_within
    from crate_mae.training.config import PretrainConfig
    from crate_mae.training.run_folder import with_recorded_start

    output = Output(given.json)
    config = parse_recipe(given.config, settings)
    check_whole_command(config, settings)

    def tell(text: str) -> None:
        """Print what is being measured."""
        print(text, file=sys.stderr)

    if given.within is not None:
        # What starts from weights has their architecture; what was typed is meant.
        run = user_path(given.config)
        if isinstance(config, PretrainConfig):
            settings = with_recorded_start(run, settings)
        words = [word.partition("=")[0] for word in settings]
        fixed = "--init-from" in words or any(word.startswith("--model.") for word in words)
        fitting = run_within(
            config, given.within, images=given.num_images, fixed_model=fixed, progress=tell
        )
        recipe = str(run / "config.yaml") if run.is_dir() else given.config
        command = fitting.command(recipe, settings)
        output.say(fitting_text(fitting, command))
        more = {"command": command, "settings": fitting.settings, "reasons": fitting.reasons}
        output.write({**fitting.plan.to_dict(), "within": {"seconds": given.within, **more}})
        return 0
    found = plan_run(
        config,
        images=given.num_images,
        measure=not given.no_measure,
        tflops=given.tflops,
        progress=tell,
    )
    output.say(plan_text(found))
    output.write(found.to_dict())
    return 0


def report_parser() -> CommandParser:
    """The parser of `crate-mae report`."""
    parser = verb_parser("report", "One HTML file that tells a whole run, complete in itself.")
    parser.add_argument("run", help="folder of a run")
    parser.add_argument("--out", metavar="FILE", help="the page (RUN/report.html)")
    parser.add_argument(
        "--no-measure", action="store_true", help="only gather what has been measured already"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="training images at most (50000)")
    parser.add_argument("--test-limit", type=int, metavar="N", help="test images at most (10000)")
    add_device(parser)
    parser.set_defaults(device=None)
    return parser


def report(argv: list[str]) -> int:
    """The exit status of `crate-mae report`."""
    parser = report_parser()
    given = parser.read(argv)
    if given.no_measure:
        refuse_beside(
            parser,
            "--no-measure only gathers what has been measured already",
            {
                "--limit": given.limit,
                "--test-limit": given.test_limit,
                "--device": given.device,
            },
        )

    from crate_mae.report.page import write_report

    made = write_report(
        given.run,
        given.out,
        measure=not given.no_measure,
        limit=given.limit,
        test_limit=given.test_limit,
        device=device_of(given.device or "auto"),
        progress=counter_for,
    )
    for sentence in made.left_out:
        print(sentence)
    print(f"wrote {made.path} ({made.path.stat().st_size / 1e6:.1f} MB)")
    return 0


def compare_parser() -> CommandParser:
    """The parser of `crate-mae compare`."""
    parser = verb_parser(
        "compare", "Runs beside each other: settings that differ, losses, probe and kNN."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, at least two")
    parser.add_argument(
        "--measure", action="store_true", help="measure probe and kNN where they are missing"
    )
    parser.add_argument("--out", metavar="FILE", help="a picture of it: .png, .pdf or .svg")
    add_overwrite(parser)
    add_json(parser, "the comparison")
    add_device(parser)
    parser.set_defaults(device=None)
    return parser


def compare(argv: list[str]) -> int:
    """The exit status of `crate-mae compare`."""
    parser = compare_parser()
    given = parser.read(argv)
    if given.out is None:
        refuse_beside(
            parser, "without --out there is no picture to replace", {"--overwrite": given.overwrite}
        )
    if not given.measure:
        refuse_beside(parser, "without --measure nothing is computed", {"--device": given.device})
    check_words(given, picture=True)
    missing = [run for run in given.runs if not (user_path(run) / "config.yaml").is_file()]
    if missing:
        raise FileNotFoundError(f"{missing[0]} is no run folder: it has no config.yaml")
    output = Output(given.json)

    from crate_mae.runs.compare_runs import compared, read_runs

    found = read_runs(given.runs)
    if given.measure:
        from crate_mae.runs.measure_missing import complete_run

        device = device_of(given.device or "auto")
        for run in found.runs:
            complete_run(run, device=device, progress=counter_for)
        found = compared(found.runs)
    output.say(found.table())
    output.write(found.to_dict())
    if given.out is not None:
        from crate_mae.figures.runs_side_by_side import draw_runs

        path = draw_runs(
            [str(run.folder) for run in found.runs],
            [run.records for run in found.runs],
            found.accuracies(),
            given.out,
            overwrite=given.overwrite,
        )
        output.say(f"wrote {path}")
    return 0


def demo_parser() -> CommandParser:
    """The parser of `crate-mae demo`."""
    parser = verb_parser("demo", "Pre-train on handwritten digits, probe, reconstruct: minutes.")
    parser.add_argument(
        "--out", metavar="FOLDER", default="runs/demo", help="run folder (runs/demo)"
    )
    return parser


def demo(argv: list[str]) -> int:
    """The exit status of `crate-mae demo`."""
    given = demo_parser().read(argv)

    from crate_mae.demo import run_demo

    found = run_demo(user_path(given.out))
    print("stopped; run the demo again to go on" if found is None else found)
    return 143 if found is None else 0
