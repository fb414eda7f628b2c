"""The command line: a verb, its arguments, a function of the library, and its result printed.

Nothing is computed here, and nothing heavy is imported before a verb has been chosen.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Sequence

import crate_mae
from crate_mae.cli.draw import attention, pca, reconstruct, segment
from crate_mae.cli.evaluate import extract, knn, map_features, probe
from crate_mae.cli.inspect import analyze, data, doctor, theory
from crate_mae.cli.train import demo, finetune, plan, pretrain, report
from crate_mae.cli.weights import convert, info, push, weights

Verb = Callable[[list[str]], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of one command: 0 done, 1 failed, 2 wrong words, 143 stopped and saved."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return exit_status(_run, words)


def exit_status(command: Verb, words: list[str]) -> int:
    """The exit status of a command that gets these words; its errors are printed in a line."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("crate_mae").setLevel(logging.INFO)
    try:
        return command(words)
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


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"crate-mae {crate_mae.__version__}")
        return 0
    verb = words.pop(0)
    if verb not in VERBS:
        from crate_mae.common.hints import did_you_mean

        print(f"error: no verb {verb!r}{did_you_mean(verb, VERBS)}", file=sys.stderr)
        print(f"       verbs: {', '.join(VERBS)}", file=sys.stderr)
        return 2
    return VERBS[verb][1](words)


VERBS: dict[str, tuple[str, Verb]] = {
    "pretrain": ("masked pre-training: images in, weights and metrics out", pretrain),
    "finetune": ("train a classifier, from pre-trained weights or from scratch", finetune),
    "plan": ("what a run needs, before it starts: steps, memory, time, disk", plan),
    "reconstruct": ("complete masked images and draw the result", reconstruct),
    "attention": ("where a token attends, head by head, drawn", attention),
    "pca": ("tokens in the colours of their principal components", pca),
    "segment": ("foreground without labels, drawn and measured", segment),
    "map": ("features of a labelled set in the plane", map_features),
    "extract": ("features of images, for your own use", extract),
    "probe": ("linear probe on frozen features, beside baselines", probe),
    "knn": ("k-nearest neighbours on frozen features, beside baselines", knn),
    "data": ("what a data address holds: counts, sizes, statistics, faults", data),
    "info": ("what a weights folder holds", info),
    "analyze": ("what every layer does to the tokens: table and figures", analyze),
    "weights": ("models that come with the package: list, card, verify", weights),
    "push": ("weights with a model card to the Hub, or to a folder", push),
    "convert": ("a published checkpoint into a weights folder, and back", convert),
    "theory": ("does compression denoise? an experiment on known subspaces", theory),
    "report": ("one HTML page that tells a whole run", report),
    "doctor": ("environment report for bug threads", doctor),
    "demo": ("pre-train on digits, probe and reconstruct, in minutes", demo),
}


def _overview() -> str:
    verbs = "\n".join(f"  {name:<12} {summary}" for name, (summary, _) in VERBS.items())
    return (
        "crate-mae: a masked autoencoder whose every layer can be read\n\n"
        f"usage: crate-mae VERB ...\n\n{verbs}\n\ncrate-mae VERB --help tells each verb's options"
    )
