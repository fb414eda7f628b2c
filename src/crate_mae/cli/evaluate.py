"""Verbs that measure features: probe, knn, extract, map."""

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crate_mae.cli.options import (
    CommandParser,
    Output,
    add_after,
    add_batch_size,
    add_device,
    add_images,
    add_json,
    add_overwrite,
    add_picture_target,
    add_pool,
    add_seed,
    add_weights,
    counter_for,
    device_of,
    numbers,
    opened_images,
    report_unreadable,
    single,
    verb_parser,
    whole_numbers,
)

if TYPE_CHECKING:
    from crate_mae.evaluation.compare import ComparedModel, Measure
    from crate_mae.evaluation.rows import Method, Row
    from crate_mae.models.backbone import Backbone

FEATURE_FILES = (".safetensors", ".npz", ".parquet")
MAX_GRIDS = 8
POOLS = ("cls", "mean", "both")


def probe_parser() -> CommandParser:
    """The parser of `crate-mae probe`."""
    parser = _comparing_parser("probe", "Linear probe on frozen features, beside baselines.")
    parser.add_argument(
        "--solver", default="exact", choices=["exact", "sgd"],
        help="exact: logistic regression at its minimum; sgd: the field's protocol (exact)",
    )  # fmt: skip
    parser.add_argument(
        "--normalise", default="standardise", choices=["standardise", "batch_norm", "none"],
        help="of features: by the training set, by non-affine batch norm (sgd), none (standardise)",
    )  # fmt: skip
    parser.add_argument("--penalties", type=numbers, metavar="X,X", help="grid of the exact solver")
    parser.add_argument("--learning-rates", type=numbers, metavar="X,X", help="grid of sgd")
    parser.add_argument("--weight-decays", type=numbers, metavar="X,X", help="grid of sgd")
    parser.add_argument("--epochs", type=int, metavar="N", help="of sgd (90)")
    parser.add_argument("--sgd-batch-size", type=int, metavar="N", help="of sgd (1024)")
    return parser


def probe(argv: list[str]) -> int:
    """The exit status of `crate-mae probe`."""
    given = probe_parser().read(argv)
    for_sgd = {
        "learning_rates": given.learning_rates,
        "weight_decays": given.weight_decays,
        "epochs": given.epochs,
        "batch_size": given.sgd_batch_size,
    }
    for_exact = {"penalties": given.penalties}
    unused = for_exact if given.solver == "sgd" else for_sgd
    for name, value in unused.items():
        if value is not None:
            option = "--sgd-batch-size" if name == "batch_size" else _option(name)
            raise ValueError(f"{option} is not for the solver {given.solver}: leave it out")

    from crate_mae.evaluation.probe import check_probe, linear_probe

    chosen = {k: v for k, v in {**for_sgd, **for_exact}.items() if v is not None}
    settings = {"solver": given.solver, "normalise": given.normalise, **chosen}
    check_probe(**settings)
    return _measure("probe", partial(linear_probe, **settings), settings, given, argv)


def knn_parser() -> CommandParser:
    """The parser of `crate-mae knn`."""
    parser = _comparing_parser("knn", "k-nearest neighbours on frozen features, beside baselines.")
    parser.add_argument(
        "--k", type=whole_numbers, metavar="N,N", help="grid (1,5,10,20,50,100,200)"
    )
    parser.add_argument(
        "--temperatures", type=numbers, metavar="X,X", help="grid (0.002,0.005,0.02,0.07,0.2)"
    )
    return parser


def knn(argv: list[str]) -> int:
    """The exit status of `crate-mae knn`."""
    given = knn_parser().read(argv)

    from crate_mae.evaluation.knn import check_knn
    from crate_mae.evaluation.knn import nearest_neighbours as nearest_neighbours

    asked = {"k": given.k, "temperatures": given.temperatures}
    settings = {key: value for key, value in asked.items() if value is not None}
    check_knn(**settings)
    return _measure("knn", partial(nearest_neighbours, **settings), settings, given, argv)


def _comparing_parser(verb: str, summary: str) -> CommandParser:
    parser = verb_parser(verb, summary)
    add_weights(
        parser, ", ViT-MAE folder of transformers; or training features of `crate-mae extract`"
    )
    parser.add_argument("address", help="labelled images, such as parquet:PATH; or test features")
    parser.add_argument(
        "--train-split", metavar="NAME", help="split to learn from (the source's training split)"
    )
    parser.add_argument(
        "--test-address", metavar="ADDRESS", help="labelled test images (the same address)"
    )
    parser.add_argument("--test-split", metavar="NAME", help="split to test on (test)")
    parser.add_argument("--limit", type=int, metavar="N", help="training images at most (all)")
    parser.add_argument("--test-limit", type=int, metavar="N", help="test images at most (all)")
    parser.add_argument(
        "--shots", type=int, metavar="N", help="learn from this many labels of every class (all)"
    )
    add_pool(parser, POOLS, several=True)
    add_after(parser, several=True)
    parser.add_argument(
        "--seeds", type=int, metavar="N", default=1, help="repeats with other seeds (1)"
    )
    add_seed(parser, "the first of the seeds")
    parser.add_argument("--no-baselines", action="store_true", help="the model alone")
    parser.add_argument(
        "--vitmae", metavar="WHICH",
        help="also a ViT-MAE: configuration (untrained, of the same sizes), parameters (untrained,"
        " as many parameters) or the folder of a trained one",
    )  # fmt: skip
    parser.add_argument("--verbose", action="store_true", help="all grids; mistakes by class")
    add_json(parser, "the results")
    add_device(parser)
    return parser


def _measure(
    method: "Method",
    measure: Callable[..., Any],
    settings: dict[str, Any],
    given: argparse.Namespace,
    argv: list[str],
) -> int:
    output = Output(given.json)
    if given.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, not {given.seeds}")
    seeds = tuple(range(given.seed, given.seed + given.seeds))
    measures = {method: partial(measure, device=device_of(given.device))}
    if Path(given.weights).suffix.lower() in FEATURE_FILES:
        rows, facts = _of_files(given, measures, seeds)
    else:
        rows, facts = _of_images(given, measures, seeds, facts_wanted=output.wants_json)
    output.say(_told(rows, verbose=given.verbose))
    if output.wants_json:
        from crate_mae.common.environment import environment

        command = ["crate-mae", method, *argv]
        settings = {**settings, "seeds": list(seeds), "shots": given.shots}
        values = {"weights": str(given.weights), **facts, "command": command, "settings": settings}
        rest = {"environment": environment(), "rows": [row.to_dict() for row in rows]}
        output.write({**values, **rest})
    return 0


def _of_images(
    given: argparse.Namespace,
    measures: "Mapping[Method, Measure]",
    seeds: tuple[int, ...],
    *,
    facts_wanted: bool,
) -> "tuple[list[Row], dict[str, Any]]":
    from crate_mae.evaluation.backbones import load_backbone
    from crate_mae.evaluation.compare import compare_models
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
    rows = compare_models(
        model,
        train,
        test,
        measures=measures,
        pools=given.pool or ("mean",),
        layers=given.after or (None,),
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


def _vitmae(
    model: "Backbone", which: str | None
) -> "tuple[dict[str, ComparedModel], dict[str, Any]]":
    """The ViT-MAE to compare with, by its name in the table, and what the JSON says of it."""
    if which is None:
        return {}, {}
    from crate_mae.evaluation.backbones import load_backbone
    from crate_mae.models.autoencoder import CrateMAE
    from crate_mae.vitmae.model import ViTMAE, vitmae_baseline

    if which in ("configuration", "parameters"):
        if model.kind != CrateMAE.kind:
            raise ValueError(
                f"--vitmae {which} needs CRATE-MAE weights, to make a baseline of them"
            )
        match: Any = which
        equal = "same sizes" if which == "configuration" else "same count"
        config = vitmae_baseline(model, match, 0).model.config.to_dict()
        name = f"untrained ViT-MAE ({equal})"
        return {name: partial(vitmae_baseline, model, match)}, {name: config}
    other, sha256 = load_backbone(which)
    if other.kind != ViTMAE.kind:
        raise ValueError(f"--vitmae {which} holds a model of kind {other.kind!r}, not a ViT-MAE")
    other.to(next(model.parameters()).device)
    return {"ViT-MAE": other}, {"ViT-MAE": {"weights": which, "sha256": sha256}}


def _of_files(
    given: argparse.Namespace, measures: "Mapping[Method, Measure]", seeds: tuple[int, ...]
) -> "tuple[list[Row], dict[str, Any]]":
    options = ("train_split", "test_address", "test_split", "limit", "test_limit")
    for name in (*options, "pool", "after", "vitmae"):
        if getattr(given, name) is not None:
            raise ValueError(
                f"{_option(name)} is for images: features are already fixed in their files"
            )

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


def _told(rows: "list[Row]", *, verbose: bool) -> str:
    """The comparison, the grids of its first rows or of all, and mistakes by class."""
    from crate_mae.evaluation.rows import comparison_table, confusion_table, grid_table

    shown = rows if verbose else rows[:MAX_GRIDS]
    parts = [comparison_table(rows), *map(grid_table, shown)]
    if len(shown) < len(rows):
        parts.append(f"{len(rows) - len(shown)} more grids: --verbose or --json FILE")
    parts += map(confusion_table, rows if verbose else ())
    return "\n\n".join(parts)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def extract_parser() -> CommandParser:
    """The parser of `crate-mae extract`."""
    parser = verb_parser("extract", "Features of images, with names, labels and preprocessing.")
    add_weights(parser, ", ViT-MAE folder")
    add_images(parser)
    add_pool(parser, (*POOLS, "tokens"))
    add_after(parser)
    add_batch_size(parser, 256)
    parser.add_argument(
        "--out", required=True, metavar="FILE", help=".safetensors, .npz or .parquet"
    )
    add_overwrite(parser)
    parser.add_argument(
        "--engine",
        default="torch",
        choices=["torch", "onnx", "openvino"],
        help="what computes them; the others are for CPUs, checked before they start (torch)",
    )
    add_device(parser)
    return parser


def extract(argv: list[str]) -> int:
    """The exit status of `crate-mae extract`."""
    given = extract_parser().read(argv)

    from crate_mae.evaluation.backbones import load_backbone
    from crate_mae.evaluation.feature_files import check_target, save_features
    from crate_mae.evaluation.features import extract_features

    pool = single(given.pool, "mean")
    check_target(given.out, overwrite=given.overwrite)
    source = opened_images(given)
    device = None
    model: Backbone
    if given.engine == "torch":
        model, sha256 = load_backbone(given.weights)
        device = device_of(given.device)
    else:
        from crate_mae.export.engines import engine_for
        from crate_mae.weights.weights_folder import weights_hash

        if single(given.after, None) is not None:
            raise ValueError(f"engine {given.engine} gives features after the last layer alone")
        place = None if given.device == "auto" else given.device
        model = engine_for(given.weights, given.engine, device=place)
        sha256 = weights_hash(given.weights)
    features = extract_features(
        model,
        source,
        device=device,
        pool=pool,
        layer=single(given.after, None),
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
    report_unreadable(features.unreadable)
    print(f"wrote {given.out}: {tuple(features.values.shape)} float32, pool {pool}")
    return 0


def map_parser() -> CommandParser:
    """The parser of `crate-mae map`."""
    parser = verb_parser("map", "Features of a labelled set in the plane, coloured by class.")
    add_weights(parser)
    add_images(parser, limit=2000, address_only=True)
    parser.add_argument(
        "--method", default="tsne", choices=["pca", "tsne"], help="the way into the plane (tsne)"
    )
    add_pool(parser, ("cls", "mean"))
    add_after(parser)
    parser.add_argument("--perplexity", type=float, metavar="X", default=30.0, help="of t-SNE (30)")
    add_seed(parser, "of t-SNE")
    add_picture_target(parser)
    add_device(parser)
    return parser


def map_features(argv: list[str]) -> int:
    """The exit status of `crate-mae map`."""
    given = map_parser().read(argv)

    from crate_mae.evaluation.feature_map import check_mappable, feature_words, project_features
    from crate_mae.evaluation.features import extract_features
    from crate_mae.figures.feature_plane import draw_feature_map
    from crate_mae.figures.style import check_figure_target
    from crate_mae.weights.weights_folder import load_model

    check_figure_target(given.out, overwrite=given.overwrite)
    source = opened_images(given)
    check_mappable(source)
    model = load_model(given.weights).to(device_of(given.device))
    features = extract_features(
        model,
        source,
        pool=single(given.pool, "mean"),
        layer=single(given.after, None),
        progress=counter_for("features"),
    )
    report_unreadable(features.unreadable)
    points = project_features(
        features, method=given.method, perplexity=given.perplexity, seed=given.seed
    )
    path = draw_feature_map(
        points,
        given.out,
        caption=feature_words(features, model.preprocess.size),
        overwrite=given.overwrite,
    )
    print(f"{len(points.labels)} images, trustworthiness {points.trustworthiness:.3f}")
    print(f"wrote {path}")
    return 0
