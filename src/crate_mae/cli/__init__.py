"""The command line: a verb, its arguments, a function of the library, and its result printed.

Nothing is computed here, and nothing heavy is imported before a verb has been chosen. A file holds
a chapter of verbs, `options` what they share.
"""

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import crate_mae
from crate_mae.cli import draw, evaluate, extract, features, inspect, train, weights
from crate_mae.common.escaping import STANDARD_OUTPUT_NAME, EscapingFilter, escaping_output
from crate_mae.common.files import FULL_DISK, NotWrittenError

Command = Callable[[list[str]], int]

INTERRUPTED = 130
"""The exit status after Ctrl-C."""


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
    with escaping_output():
        handler = logging.StreamHandler(sys.stderr)
        handler.addFilter(EscapingFilter())
        logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[handler])
        logging.getLogger("crate_mae").setLevel(logging.INFO)
        # A line that cannot be logged, on a full disk or within a signal, is no reason for a
        # traceback on the terminal.
        logging.raiseExceptions = False
        try:
            status = command(argv)
            sys.stdout.flush()  # what cannot be written is an error while it can still be told
        except BrokenPipeError:  # whoever read our output has seen enough
            _drop_output()
            return 1
        except KeyboardInterrupt:
            with _uninterrupted(), contextlib.suppress(OSError):
                print("interrupted", file=sys.stderr)
            return INTERRUPTED
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            # These carry a message for the user; anything else is our bug and keeps its traceback.
            with contextlib.suppress(OSError):
                print(f"error: {_said(error)}", file=sys.stderr)
            if isinstance(error, NotWrittenError) and error.path == STANDARD_OUTPUT_NAME:
                _drop_output()
            return 1
    return status


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """A context that Ctrl-C cannot leave; in a thread, which hears of none, it changes nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _said(error: Exception) -> str:
    """What an error says, with what to do about a full disk or a package that is missing."""
    if isinstance(error, ImportError):
        from crate_mae.common.extras import with_command

        return str(with_command(error))
    number = error.errno if isinstance(error, OSError) else None
    remedy = "" if isinstance(error, NotWrittenError) else FULL_DISK.get(number or 0, "")
    return f"{error}: {remedy}" if remedy else str(error)


def _drop_output() -> None:
    """Send what is left for standard output nowhere, where the interpreter cannot fail on it."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
            "train a classifier, or on masks, from weights or from scratch",
            train.finetune_parser,
            train.finetune,
        ),
        "plan": Verb(
            "what a run needs, before it starts: steps, memory, time, disk",
            train.plan_parser,
            train.plan,
        ),
        "report": Verb("one HTML page that tells a whole run", train.report_parser, train.report),
        "compare": Verb(
            "runs beside each other: settings, losses, accuracies",
            train.compare_parser,
            train.compare,
        ),
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
    },
    "extract": {
        "extract": Verb(
            "features of images, for your own use", extract.extract_parser, extract.extract
        ),
        "merge": Verb(
            "one file of features out of a folder of parts", extract.merge_parser, extract.merge
        ),
    },
    "features": {
        "map": Verb(
            "features of a labelled set in the plane", features.map_parser, features.map_features
        ),
        "neighbours": Verb(
            "nearest images of a set; its near-duplicates and outliers",
            features.neighbours_parser,
            features.neighbours,
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
            "classes of pixels by a trained head, or foreground without labels",
            draw.segment_parser,
            draw.segment,
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
        "export": Verb(
            "a file for ONNX Runtime, OpenVINO, ExecuTorch or torch.export, checked there",
            weights.export_parser,
            weights.export,
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
