"""The command line: a verb, its arguments, a function of the library, and its result printed.

Nothing is computed here, and nothing heavy is imported before a verb has been chosen.
"""

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import crate_mae

if TYPE_CHECKING:
    from crate_mae.evaluation.compare import Method

Verb = Callable[[list[str]], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of one command: 0 done, 1 failed, 2 wrong words, 143 stopped and saved."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(words)
    except BrokenPipeError:  # whoever read our output has seen enough
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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
        from crate_mae.models.config import did_you_mean

        print(f"error: no verb {verb!r}{did_you_mean(verb, VERBS)}", file=sys.stderr)
        print(f"       verbs: {', '.join(VERBS)}", file=sys.stderr)
        return 2
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("crate_mae").setLevel(logging.INFO)
    try:
        return VERBS[verb][1](words)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        # These carry a message for the user; anything else is our bug and keeps its traceback.
        print(f"error: {error}", file=sys.stderr)
        return 1


def pretrain(words: list[str]) -> int:
    """The exit status of `crate-mae pretrain`."""
    from crate_mae.training.callbacks import is_main_process
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
    if not is_main_process():
        return 0  # another status would make the launcher kill the main process
    if not summary.finished:
        print(f"stopped at step {summary.step}; continue with crate-mae pretrain --resume {folder}")
        return 143
    numbers = " ".join(f"{key}={value:.4g}" for key, value in summary.metrics.items())
    print(f"finished: folder={folder} step={summary.step} seconds={summary.seconds:.0f} {numbers}")
    return 0


def data(words: list[str]) -> int:
    """The exit status of `crate-mae data`."""
    parser = _parser("data", "Counts, sizes, modes, mean and std, unreadable files, classes.")
    parser.add_argument("address", help="such as imagefolder:PATH, parquet:PATH or digits")
    _add_data_options(parser)
    parser.add_argument("--json", metavar="FILE", help="also write the report as JSON (new file)")
    given = parser.parse_args(words)

    from crate_mae.data.report import describe
    from crate_mae.data.sources import open_source

    target = _new_file(given.json)
    source = open_source(given.address, split=given.data_split, limit=given.limit)
    report = describe(source, progress=_counter("reading"))
    print(report.table())
    _write_json(target, report.to_dict())
    return 0


def reconstruct(words: list[str]) -> int:
    """The exit status of `crate-mae reconstruct`."""
    parser = _parser("reconstruct", "Original, masked, prediction, both, error: one picture.")
    parser.add_argument("weights", help="weights folder, run folder or Hub repository")
    parser.add_argument("images", nargs="+", help="image files, folders, or one data address")
    _add_data_options(parser, limit=8)
    parser.add_argument("--mask-ratio", type=float, default=0.75, help="share removed (0.75)")
    parser.add_argument("--mask-kind", default="random", choices=["random", "block", "grid"])
    parser.add_argument("--mask", metavar="FILE", help="image whose bright pixels are removed")
    parser.add_argument("--seed", type=int, default=0, help="fixes the masks (0)")
    parser.add_argument(
        "--pixels",
        choices=["visible", "oracle", "raw"],
        help="way back to pixels for models with normalised targets (visible)",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help=".png, .pdf or .svg")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing picture")
    _add_device(parser)
    given = parser.parse_args(words)

    from crate_mae.data.inputs import open_images, pixel_mask
    from crate_mae.evaluation.reconstruction import reconstruct_source
    from crate_mae.figures import check_figure_target, reconstruction_sheet
    from crate_mae.models.weights import load_autoencoder

    check_figure_target(given.out, overwrite=given.overwrite)
    source = open_images(given.images, split=given.data_split, limit=given.limit)
    model = load_autoencoder(given.weights).to(_device(given.device))
    mask = None if given.mask is None else pixel_mask(given.mask, model.config)
    result, names = reconstruct_source(
        model,
        source,
        kind=given.mask_kind,
        ratio=given.mask_ratio,
        seed=given.seed,
        mask=mask,
        mode=given.pixels,
    )
    path = reconstruction_sheet(result, given.out, names=names, overwrite=given.overwrite)
    for name, psnr, mse in zip(names, result.psnr.tolist(), result.mse.tolist(), strict=True):
        print(f"{name}: PSNR {psnr:.2f} dB, MSE {mse:.5f} on removed patches")
    print(f"wrote {path}")
    return 0


def extract(words: list[str]) -> int:
    """The exit status of `crate-mae extract`."""
    parser = _parser("extract", "Features of images, with names, labels and preprocessing.")
    parser.add_argument("weights", help="weights folder, run folder or Hub repository")
    parser.add_argument("images", nargs="+", help="one data address, or image files and folders")
    _add_data_options(parser)
    parser.add_argument("--pool", default="mean", choices=["cls", "mean", "tokens"])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--out", required=True, help=".safetensors, .npz or .parquet")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    _add_device(parser)
    given = parser.parse_args(words)

    from crate_mae.data.inputs import open_images
    from crate_mae.evaluation.features import check_target, extract_features, save_features
    from crate_mae.models.weights import load_model, weights_hash

    check_target(given.out, overwrite=given.overwrite)
    source = open_images(given.images, split=given.data_split, limit=given.limit)
    model = load_model(given.weights).to(_device(given.device))
    features = extract_features(
        model,
        source,
        pool=given.pool,
        batch_size=given.batch_size,
        progress=_counter("features"),
    )
    save_features(
        features,
        given.out,
        preprocess=model.preprocess,
        weights_hash=weights_hash(given.weights),
        overwrite=given.overwrite,
    )
    for name, reason in features.unreadable:
        print(f"passed over: {name} ({reason})", file=sys.stderr)
    print(f"wrote {given.out}: {tuple(features.values.shape)} float32, pool {given.pool}")
    return 0


def probe(words: list[str]) -> int:
    """The exit status of `crate-mae probe`."""
    return _compare("probe", "Linear probe on frozen features, beside baselines.", words)


def knn(words: list[str]) -> int:
    """The exit status of `crate-mae knn`."""
    return _compare("knn", "k-nearest neighbours on frozen features, beside baselines.", words)


def info(words: list[str]) -> int:
    """The exit status of `crate-mae info`."""
    parser = _parser("info", "What a weights folder holds.")
    parser.add_argument("weights", help="weights folder, run folder or Hub repository")
    parser.add_argument("--json", action="store_true", help="as JSON")
    given = parser.parse_args(words)

    from crate_mae.models.info import describe_weights, weights_table

    facts = describe_weights(given.weights)
    _print_json(facts) if given.json else print(weights_table(facts))
    return 0


def doctor(words: list[str]) -> int:
    """The exit status of `crate-mae doctor`."""
    parser = _parser("doctor", "Versions, hardware and optional packages, for bug reports.")
    parser.add_argument("--json", action="store_true", help="as JSON, with every package")
    given = parser.parse_args(words)

    from crate_mae.environment import doctor_table, environment

    facts = environment()
    _print_json(facts) if given.json else print(doctor_table(facts))
    return 0


def demo(words: list[str]) -> int:
    """The exit status of `crate-mae demo`."""
    parser = _parser("demo", "Pre-train on handwritten digits, probe, reconstruct: minutes.")
    parser.add_argument("--out", default="runs/demo", help="run folder (runs/demo)")
    given = parser.parse_args(words)

    from crate_mae.demo import run_demo

    found = run_demo(Path(given.out))
    print("stopped; run the demo again to go on" if found is None else found)
    return 143 if found is None else 0


VERBS: dict[str, tuple[str, Verb]] = {
    "pretrain": ("masked pre-training: images in, weights and metrics out", pretrain),
    "reconstruct": ("complete masked images and draw the result", reconstruct),
    "extract": ("features of images, for your own use", extract),
    "probe": ("linear probe on frozen features, beside baselines", probe),
    "knn": ("k-nearest neighbours on frozen features, beside baselines", knn),
    "data": ("what a data address holds: counts, sizes, statistics, faults", data),
    "info": ("what a weights folder holds", info),
    "doctor": ("environment report for bug threads", doctor),
    "demo": ("pre-train on digits, probe and reconstruct, in minutes", demo),
}


def _compare(method: "Method", summary: str, words: list[str]) -> int:
    parser = _parser(method, summary)
    parser.add_argument("weights", help="weights folder, run folder or Hub repository")
    parser.add_argument("address", help="labelled images, such as parquet:PATH")
    parser.add_argument("--train-split", help="split to learn from (the source's training split)")
    parser.add_argument("--test-address", help="labelled test images (the same address)")
    parser.add_argument("--test-split", default=None, help="split to test on (test)")
    parser.add_argument("--limit", type=int, help="use this many training images")
    parser.add_argument("--test-limit", type=int, help="use this many test images")
    parser.add_argument("--pool", default="mean", choices=["cls", "mean"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-baselines", action="store_true", help="the model alone")
    parser.add_argument("--json", metavar="FILE", help="also write the results as JSON (new file)")
    _add_device(parser)
    given = parser.parse_args(words)

    from crate_mae.evaluation.compare import compare, comparison_table, open_pair
    from crate_mae.models.weights import load_model, weights_hash

    target = _new_file(given.json)
    model = load_model(given.weights).to(_device(given.device))
    train, test = open_pair(
        given.address,
        train_split=given.train_split,
        test_address=given.test_address,
        test_split=given.test_split,
        limit=given.limit,
        test_limit=given.test_limit,
        seed=given.seed,
    )
    rows = compare(
        model,
        train,
        test,
        methods=(method,),
        pool=given.pool,
        seed=given.seed,
        baselines=not given.no_baselines,
        progress=_counter,
    )
    print(comparison_table(rows))
    facts = {
        "weights": str(given.weights),
        "sha256": weights_hash(given.weights),
        "rows": [row.to_dict() for row in rows],
    }
    _write_json(target, facts)
    return 0


def _overview() -> str:
    verbs = "\n".join(f"  {name:<12} {summary}" for name, (summary, _) in VERBS.items())
    return (
        "crate-mae: a masked autoencoder whose every layer can be read\n\n"
        f"usage: crate-mae VERB ...\n\n{verbs}\n\ncrate-mae VERB --help tells each verb's options"
    )


def _parser(verb: str, summary: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"crate-mae {verb}", description=summary)


def _add_data_options(parser: argparse.ArgumentParser, limit: int | None = None) -> None:
    default = "all" if limit is None else limit
    parser.add_argument("--data-split", help="split of the data address")
    parser.add_argument(
        "--limit", type=int, default=limit, help=f"use at most this many images ({default})"
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")


def _device(name: str) -> str:
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _counter(what: str) -> Callable[[int, int], None] | None:
    """A one-line count with time left on a terminal; None elsewhere."""
    from crate_mae.progress import counter

    return counter(what)


def _new_file(name: str | None) -> Path | None:
    if name is None:
        return None
    path = Path(name)
    if path.exists():
        raise FileExistsError(f"{path} exists and is not overwritten; name another file")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} in")
    return path


def _write_json(path: Path | None, values: dict[str, Any]) -> None:
    import json

    if path is not None:
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        print(f"wrote {path}")


def _print_json(values: dict[str, Any]) -> None:
    import json

    print(json.dumps(values, indent=2))
