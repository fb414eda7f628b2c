"""Verbs that measure frozen features: probe, knn."""

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crate_mae.cli.options import (
    WEIGHTS,
    add_device,
    counter_for,
    device_of,
    new_file,
    seed_number,
    verb_parser,
    write_json,
)

if TYPE_CHECKING:
    from crate_mae.evaluation.backbones import Backbone
    from crate_mae.evaluation.compare import Measure, Subject
    from crate_mae.evaluation.rows import Method, Row
import sys

from crate_mae.cli.options import add_data_options, add_picture_options, report_unreadable

FEATURE_FILES = (".safetensors", ".npz", ".parquet")
MAX_GRIDS = 8


def probe(words: list[str]) -> int:
    """The exit status of `crate-mae probe`."""
    parser = _parser("probe", "Linear probe on frozen features, beside baselines.")
    parser.add_argument(
        "--solver", default="exact", choices=["exact", "sgd"],
        help="exact: logistic regression at its minimum; sgd: the field's protocol (exact)",
    )  # fmt: skip
    parser.add_argument(
        "--normalise", default="standardise", choices=["standardise", "batch_norm", "none"],
        help="of features: by the training set, by non-affine batch norm (sgd), none (standardise)",
    )  # fmt: skip
    parser.add_argument("--penalties", type=_numbers, help="grid of the exact solver")
    parser.add_argument("--learning-rates", type=_numbers, help="grid of sgd")
    parser.add_argument("--weight-decays", type=_numbers, help="grid of sgd")
    parser.add_argument("--epochs", type=int, help="of sgd (90)")
    parser.add_argument("--batch-size", type=int, help="of sgd (1024)")
    given = parser.parse_args(words)
    for_sgd = {
        "learning_rates": given.learning_rates,
        "weight_decays": given.weight_decays,
        "epochs": given.epochs,
        "batch_size": given.batch_size,
    }
    for_exact = {"penalties": given.penalties}
    unused = for_exact if given.solver == "sgd" else for_sgd
    for name, value in unused.items():
        if value is not None:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} is not for the solver {given.solver}: leave it out")

    from crate_mae.evaluation.probe import check_probe, linear_probe

    chosen = {k: v for k, v in {**for_sgd, **for_exact}.items() if v is not None}
    settings = {"solver": given.solver, "normalise": given.normalise, **chosen}
    check_probe(**settings)
    return _measure("probe", partial(linear_probe, **settings), settings, given, words)


def knn(words: list[str]) -> int:
    """The exit status of `crate-mae knn`."""
    parser = _parser("knn", "k-nearest neighbours on frozen features, beside baselines.")
    parser.add_argument("--k", type=_whole_numbers, help="grid (1,5,10,20,50,100,200)")
    parser.add_argument("--temperatures", type=_numbers, help="grid (0.002,0.005,0.02,0.07,0.2)")
    given = parser.parse_args(words)

    from crate_mae.evaluation.knn import check_knn
    from crate_mae.evaluation.knn import knn as nearest_neighbours

    asked = {"k": given.k, "temperatures": given.temperatures}
    settings = {key: value for key, value in asked.items() if value is not None}
    check_knn(**settings)
    return _measure("knn", partial(nearest_neighbours, **settings), settings, given, words)


def _parser(verb: str, summary: str) -> argparse.ArgumentParser:
    parser = verb_parser(verb, summary)
    parser.add_argument(
        "weights",
        help=f"{WEIGHTS}, ViT-MAE folder of transformers;"
        " or training features of `crate-mae extract`",
    )
    parser.add_argument("address", help="labelled images, such as parquet:PATH; or test features")
    parser.add_argument("--train-split", help="split to learn from (the source's training split)")
    parser.add_argument("--test-address", help="labelled test images (the same address)")
    parser.add_argument("--test-split", default=None, help="split to test on (test)")
    parser.add_argument("--limit", type=int, help="use this many training images")
    parser.add_argument("--test-limit", type=int, help="use this many test images")
    parser.add_argument("--shots", type=int, help="learn from this many labels of every class")
    parser.add_argument(
        "--pool", type=_pools, metavar="POOLS", help="one or more of cls,mean,both (mean)"
    )
    parser.add_argument(
        "--layers", type=_layers,
        help="numbers of encoder layers passed, such as 0,2,4,final, or all (final)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=1, help="repeats with other seeds (1)")
    parser.add_argument("--seed", type=seed_number, default=0, help="the first of them (0)")
    parser.add_argument("--no-baselines", action="store_true", help="the model alone")
    parser.add_argument(
        "--vitmae", metavar="WHICH",
        help="also a ViT-MAE: same (untrained, same configuration), params (untrained, as many"
        " parameters) or the folder of a trained one",
    )  # fmt: skip
    parser.add_argument("--verbose", action="store_true", help="all grids; mistakes by class")
    parser.add_argument("--json", metavar="FILE", help="also write the results as JSON (new file)")
    add_device(parser)
    return parser


def _measure(
    method: "Method",
    measure: Callable[..., Any],
    settings: dict[str, Any],
    given: argparse.Namespace,
    words: list[str],
) -> int:
    target = new_file(given.json)
    if given.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, not {given.seeds}")
    seeds = tuple(range(given.seed, given.seed + given.seeds))
    measures = {method: partial(measure, device=device_of(given.device))}
    if Path(given.weights).suffix.lower() in FEATURE_FILES:
        rows, facts = _of_files(given, measures, seeds)
    else:
        rows, facts = _of_images(given, measures, seeds, facts_wanted=target is not None)
    _report(rows, verbose=given.verbose)
    if target is not None:
        from crate_mae.common.environment import environment

        command = ["crate-mae", method, *words]
        settings = {**settings, "seeds": list(seeds), "shots": given.shots}
        values = {"weights": str(given.weights), **facts, "command": command, "settings": settings}
        rest = {"environment": environment(), "rows": [row.to_dict() for row in rows]}
        write_json(target, {**values, **rest})
    return 0


def _of_images(
    given: argparse.Namespace,
    measures: "Mapping[Method, Measure]",
    seeds: tuple[int, ...],
    *,
    facts_wanted: bool,
) -> "tuple[list[Row], dict[str, Any]]":
    from crate_mae.evaluation.backbones import load_backbone
    from crate_mae.evaluation.compare import compare
    from crate_mae.sources.address import open_pair

    model, sha256 = load_backbone(given.weights)
    model.to(device_of(given.device))
    others, other_facts = _vitmae(model, given.vitmae)
    train, test = open_pair(
        given.address,
        train_split=given.train_split,
        test_address=given.test_address,
        test_split=given.test_split,
        limit=given.limit,
        test_limit=given.test_limit,
    )
    rows = compare(
        model,
        train,
        test,
        measures=measures,
        pools=given.pool or ("mean",),
        layers=given.layers or (None,),
        seeds=seeds,
        shots=given.shots,
        baselines=not given.no_baselines,
        others=others,
        progress=counter_for,
    )
    if not facts_wanted:  # a fingerprint reads every name and label
        return rows, {}
    data = {
        part: {
            "address": source.address,
            "split": source.split,
            "count": len(source),
            "fingerprint": source.fingerprint(),
        }
        for part, source in (("train", train), ("test", test))
    }
    return rows, {"sha256": sha256, "data": data, "others": other_facts}


def _vitmae(model: "Backbone", which: str | None) -> "tuple[dict[str, Subject], dict[str, Any]]":
    """The ViT-MAE to compare with, by its name in the table, and what the JSON says of it."""
    if which is None:
        return {}, {}
    from crate_mae.models.autoencoder import CrateMAE
    from crate_mae.vitmae.model import vitmae_twin
    from crate_mae.vitmae.vitmae_folder import load_vitmae, vitmae_folder, vitmae_hash

    if which in ("same", "params"):
        if not isinstance(model, CrateMAE):
            raise ValueError(f"--vitmae {which} needs CRATE-MAE weights, to make a twin of them")
        match: Any = "configuration" if which == "same" else "parameters"
        name = f"untrained ViT-MAE ({'same sizes' if which == 'same' else 'same count'})"
        config = vitmae_twin(model, match).model.config.to_dict()
        return {name: lambda seed: vitmae_twin(model, match, seed=seed)}, {name: config}
    twin = load_vitmae(which).to(next(model.parameters()).device)
    folder = vitmae_folder(which)
    assert folder is not None
    return {"ViT-MAE": twin}, {"ViT-MAE": {"weights": which, "sha256": vitmae_hash(folder)}}


def _of_files(
    given: argparse.Namespace, measures: "Mapping[Method, Measure]", seeds: tuple[int, ...]
) -> "tuple[list[Row], dict[str, Any]]":
    options = ("train_split", "test_address", "test_split", "limit", "test_limit")
    for option in (*options, "pool", "layers", "vitmae"):
        if getattr(given, option) is not None:
            shown = option.replace("_", "-")
            raise ValueError(f"--{shown} is for images: features are already fixed in their files")

    from crate_mae.evaluation.compare import compare_features
    from crate_mae.evaluation.feature_files import load_pair

    train, test = Path(given.weights), Path(given.address)
    if test.suffix.lower() not in FEATURE_FILES:
        raise ValueError(
            f"{train} holds training features, so {test} should hold test features (.safetensors):"
            " extract both, with two commands"
        )
    known, unknown, facts = load_pair(train, test)
    rows = compare_features(
        known,
        unknown,
        tested_on=str(test),
        measures=measures,
        seeds=seeds,
        shots=given.shots,
        progress=counter_for,
    )
    data = {"train": {"address": str(train)}, "test": {"address": str(test)}}
    return rows, {"sha256": facts["weights_sha256"], "data": data, "others": {}}


def _report(rows: "list[Row]", *, verbose: bool) -> None:
    from crate_mae.evaluation.rows import comparison_table, confusion_table, grid_table

    print(comparison_table(rows))
    shown = rows if verbose else rows[:MAX_GRIDS]
    for row in shown:
        print(f"\n{grid_table(row)}")
    if len(shown) < len(rows):
        print(f"\n{len(rows) - len(shown)} more grids: --verbose or --json FILE")
    for row in rows if verbose else ():
        print(f"\n{confusion_table(row)}")


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _whole_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _pools(text: str) -> tuple[str, ...]:
    pools = tuple(dict.fromkeys(text.split(",")))
    if unknown := set(pools) - {"cls", "mean", "both"}:
        raise argparse.ArgumentTypeError(f"pools are cls, mean and both, not {sorted(unknown)}")
    return pools


def _layers(text: str) -> tuple[int | None, ...] | str:
    if text == "all":
        return text
    return tuple(None if part == "final" else int(part) for part in text.split(","))


def map_features(words: list[str]) -> int:
    """The exit status of `crate-mae map`."""
    parser = verb_parser("map", "Features of a labelled set in the plane, coloured by class.")
    parser.add_argument("weights", help=WEIGHTS)
    parser.add_argument("address", help="labelled images, such as parquet:PATH")
    add_data_options(parser, limit=2000)
    parser.add_argument("--method", default="tsne", choices=["pca", "tsne"], help="(tsne)")
    parser.add_argument("--pool", default="mean", choices=["cls", "mean"], help="(mean)")
    parser.add_argument("--perplexity", type=float, default=30.0, help="of t-SNE (30)")
    parser.add_argument("--seed", type=seed_number, default=0, help="of t-SNE (0)")
    add_picture_options(parser)
    add_device(parser)
    given = parser.parse_args(words)

    from crate_mae.evaluation.feature_map import check_mappable, feature_map, feature_words
    from crate_mae.evaluation.features import extract_features
    from crate_mae.figures.feature_plane import feature_map_figure
    from crate_mae.figures.style import check_figure_target
    from crate_mae.sources.inputs import open_images
    from crate_mae.weights.weights_folder import load_model

    check_figure_target(given.out, overwrite=given.overwrite)
    source = open_images([given.address], split=given.data_split, limit=given.limit)
    check_mappable(source)
    model = load_model(given.weights).to(device_of(given.device))
    features = extract_features(model, source, pool=given.pool, progress=counter_for("features"))
    report_unreadable(features.unreadable)
    points = feature_map(
        features, method=given.method, perplexity=given.perplexity, seed=given.seed
    )
    path = feature_map_figure(
        points,
        given.out,
        caption=feature_words(features, model.preprocess.size),
        overwrite=given.overwrite,
    )
    print(f"{len(points.labels)} images, trustworthiness {points.trustworthiness:.3f}")
    print(f"wrote {path}")
    return 0


def extract(words: list[str]) -> int:
    """The exit status of `crate-mae extract`."""
    parser = verb_parser("extract", "Features of images, with names, labels and preprocessing.")
    parser.add_argument("weights", help=f"{WEIGHTS}, ViT-MAE folder")
    parser.add_argument("images", nargs="+", help="one data address, or image files and folders")
    add_data_options(parser)
    parser.add_argument("--pool", default="mean", choices=["cls", "mean", "both", "tokens"])
    parser.add_argument(
        "--layer", type=int, help="encoder layers passed, from 0 (all, and the final norm)"
    )
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--out", required=True, help=".safetensors, .npz or .parquet")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    add_device(parser)
    given = parser.parse_args(words)

    from crate_mae.evaluation.backbones import load_backbone
    from crate_mae.evaluation.feature_files import check_target, save_features
    from crate_mae.evaluation.features import extract_features
    from crate_mae.sources.inputs import open_images

    check_target(given.out, overwrite=given.overwrite)
    source = open_images(given.images, split=given.data_split, limit=given.limit)
    model, sha256 = load_backbone(given.weights)
    features = extract_features(
        model.to(device_of(given.device)),
        source,
        pool=given.pool,
        layer=given.layer,
        batch_size=given.batch_size,
        progress=counter_for("features"),
    )
    save_features(
        features,
        given.out,
        preprocess=model.preprocess,
        weights_hash=sha256,
        overwrite=given.overwrite,
    )
    for name, reason in features.unreadable:
        print(f"passed over: {name} ({reason})", file=sys.stderr)
    print(f"wrote {given.out}: {tuple(features.values.shape)} float32, pool {given.pool}")
    return 0
