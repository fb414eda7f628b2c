"""The command line: a verb, its arguments, a function of the library, and its result printed.

Nothing is computed here, and nothing heavy is imported before a verb has been chosen. A file holds
a chapter of verbs, `options` what they share.
"""

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import crate_mae
from crate_mae.cli import draw, evaluate, inspect, train, weights

Command = Callable[[list[str]], int]


class Verb(NamedTuple):
    """What a verb is called for, and how."""

    summary: str
    parser: Callable[[], argparse.ArgumentParser]
    run: Command


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of one command.

    0 done, 1 failed, 2 wrong arguments, 130 interrupted, 143 stopped and saved.
    """
    argv = list(sys.argv[1:] if arguments is None else arguments)
    return exit_status(_run, argv)


def exit_status(command: Command, argv: list[str]) -> int:
    """The exit status of a command with these arguments; its errors are printed in a line."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("crate_mae").setLevel(logging.INFO)
    try:
        return command(argv)
    except BrokenPipeError:  # whoever read our output has seen enough
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        # These carry a message for the user; anything else is our bug and keeps its traceback.
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"crate-mae {crate_mae.__version__}")
        return 0
    name = argv.pop(0)
    if name not in VERBS:
        from crate_mae.common.hints import did_you_mean

        print(f"error: no verb {name!r}{did_you_mean(name, VERBS)}", file=sys.stderr)
        print(f"       verbs: {', '.join(VERBS)}", file=sys.stderr)
        return 2
    return VERBS[name].run(argv)


CHAPTERS: dict[str, dict[str, Verb]] = {
    "train": {
        "pretrain": Verb(
            "pre-training without labels: images in, weights and metrics out",
            train.pretrain_parser,
            train.pretrain,
        ),
        "finetune": Verb(
            "train a classifier, from pre-trained weights or from scratch",
            train.finetune_parser,
            train.finetune,
        ),
        "plan": Verb(
            "what a run needs, before it starts: steps, memory, time, disk",
            train.plan_parser,
            train.plan,
        ),
        "report": Verb("one HTML page that tells a whole run", train.report_parser, train.report),
        "demo": Verb(
            "pre-train on digits, probe and reconstruct, in minutes", train.demo_parser, train.demo
        ),
    },
    "evaluate": {
        "probe": Verb(
            "linear probe on frozen features, beside baselines",
            evaluate.probe_parser,
            evaluate.probe,
        ),
        "knn": Verb(
            "k-nearest neighbours on frozen features, beside baselines",
            evaluate.knn_parser,
            evaluate.knn,
        ),
        "extract": Verb(
            "features of images, for your own use", evaluate.extract_parser, evaluate.extract
        ),
        "map": Verb(
            "features of a labelled set in the plane", evaluate.map_parser, evaluate.map_features
        ),
    },
    "draw": {
        "reconstruct": Verb(
            "complete masked images and draw the result",
            draw.reconstruct_parser,
            draw.reconstruct,
        ),
        "attention": Verb(
            "where a token attends, head by head", draw.attention_parser, draw.attention
        ),
        "pca": Verb(
            "tokens in the colours of their principal components", draw.pca_parser, draw.pca
        ),
        "segment": Verb(
            "foreground without labels, drawn and measured", draw.segment_parser, draw.segment
        ),
    },
    "inspect": {
        "data": Verb(
            "what a data address holds: counts, sizes, statistics, faults",
            inspect.data_parser,
            inspect.data,
        ),
        "analyze": Verb(
            "what every layer does to the tokens: table and figures",
            inspect.analyze_parser,
            inspect.analyze,
        ),
        "theory": Verb(
            "does compression denoise? an experiment on known subspaces",
            inspect.theory_parser,
            inspect.theory,
        ),
        "doctor": Verb("environment report for bug threads", inspect.doctor_parser, inspect.doctor),
    },
    "weights": {
        "info": Verb("what a weights folder holds", weights.info_parser, weights.info),
        "weights": Verb(
            "models that come with the package: list, card, verify",
            weights.weights_parser,
            weights.weights,
        ),
        "push": Verb(
            "weights with a model card to the Hub, or to a folder",
            weights.push_parser,
            weights.push,
        ),
        "convert": Verb(
            "a published checkpoint into a weights folder, and back",
            weights.convert_parser,
            weights.convert,
        ),
    },
}
"""Every verb, by the file of this package that holds it."""

VERBS = {name: verb for verbs in CHAPTERS.values() for name, verb in verbs.items()}


def _overview() -> str:
    lines = ["crate-mae: a masked autoencoder whose every layer can be read"]
    lines += ["", "usage: crate-mae VERB ..."]
    for chapter, verbs in CHAPTERS.items():
        lines += ["", chapter, *(f"  {name:<12} {verb.summary}" for name, verb in verbs.items())]
    return "\n".join([*lines, "", "crate-mae VERB --help tells each verb's options"])
