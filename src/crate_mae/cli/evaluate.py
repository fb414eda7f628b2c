"""Verbs that measure features beside baselines: probe, knn."""

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from crate_mae.cli.early import check_words, is_feature_file
from crate_mae.cli.options import (
    CommandParser,
    Names,
    Output,
    add_after,
    add_device,
    add_image_size,
    add_json,
    add_pool,
    add_reading,
    add_seed,
    add_weights,
    counter_for,
    device_of,
    numbers,
    reading_of,
    verb_parser,
    whole_numbers,
)
from crate_mae.common.files import user_path

if TYPE_CHECKING:
    from crate_mae.evaluation.compare import Baseline, ComparedModel, Measure
    from crate_mae.evaluation.rows import Method, Row
    from crate_mae.models.backbone import Backbone

MAX_GRIDS = 8
BASELINES = ("random", "pixels", "none")
WHITEN = ("no", "yes", "choose")
DRAWS = 5
"""Repeats where labels are few and drawn at random, unless --seeds says otherwise: one draw of five
labels a class is worth little."""


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
    check_words(given)
    output = Output(given.json)
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
    return _measure("probe", partial(linear_probe, **settings), settings, given, output, argv)


def knn_parser() -> CommandParser:
    """The parser of `crate-mae knn`."""
    parser = _comparing_parser("knn", "k-nearest neighbours on frozen features, beside baselines.")
    parser.add_argument(
        "--k", type=whole_numbers, metavar="N,N", help="grid (1,5,10,20,50,100,200)"
    )
    parser.add_argument(
        "--temperatures", type=numbers, metavar="X,X", help="grid (0.002,0.005,0.02,0.07,0.2)"
    )
    parser.add_argument(
        "--whiten", type=_whiten, default="no", metavar="HOW",
        help="compare features whitened by the training images, as strongly as held-out images"
        " ask: no, as is published; yes; choose, whether at all; or strengths X,X to try, 0 for"
        " features as they are (no)",
    )  # fmt: skip
    return parser


def _whiten(text: str) -> str | tuple[float, ...]:
    """One of the words, or strengths."""
    if text in WHITEN:
        return text
    try:
        return numbers(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is none of {', '.join(WHITEN)}, and no strengths such as 0,1,10"
        ) from None


def knn(argv: list[str]) -> int:
    """The exit status of `crate-mae knn`."""
    given = knn_parser().read(argv)
    check_words(given)
    output = Output(given.json)

    from crate_mae.evaluation.knn import AS_THEY_ARE, STRENGTHS, check_knn
    from crate_mae.evaluation.knn import nearest_neighbours as nearest_neighbours

    asked = {"k": given.k, "temperatures": given.temperatures}
    settings = {key: value for key, value in asked.items() if value is not None}
    named = {"yes": STRENGTHS, "choose": (AS_THEY_ARE, *STRENGTHS)}
    if given.whiten != "no":
        settings["whitening"] = named.get(given.whiten, given.whiten)
    check_knn(**settings)
    return _measure("knn", partial(nearest_neighbours, **settings), settings, given, output, argv)


def _comparing_parser(verb: str, summary: str) -> CommandParser:
    parser = verb_parser(verb, summary)
    add_weights(
        parser, ", ViT-MAE folder of transformers; or training features that extract has written"
    )
    parser.add_argument("address", help="labelled images, such as parquet:PATH; or test features")
    parser.add_argument(
        "--train-split", metavar="NAME", help="split to learn from (the source's training split)"
    )
    parser.add_argument(
        "--test-address", metavar="ADDRESS", help="labelled test images (the same address)"
    )
    parser.add_argument(
        "--test-split", metavar="NAME", help="split to test on (test, else validation)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="training images at most (all)")
    parser.add_argument("--test-limit", type=int, metavar="N", help="test images at most (all)")
    add_reading(parser)
    parser.add_argument(
        "--shots", type=int, metavar="N", help="learn from this many labels of every class (all)"
    )
    add_pool(parser, several=True)
    add_after(parser, several=True)
    add_image_size(parser)
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help=f"repeats with other seeds; they draw the --shots, too (1; with --shots {DRAWS})",
    )
    add_seed(parser, "the first of the seeds")
    parser.add_argument(
        "--baselines", type=Names(BASELINES, several=True), metavar="NAME,NAME",
        help="beside the model: random (the same network untrained), pixels, or none"
        " (random,pixels)",
    )  # fmt: skip
    parser.add_argument("--no-baselines", action="store_true", help="as --baselines none")
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
    output: Output,
    argv: list[str],
) -> int:
    count = (1 if given.shots is None else DRAWS) if given.seeds is None else given.seeds
    if count < 1:
        raise ValueError(f"--seeds must be at least 1, not {count}")
    seeds = tuple(range(given.seed, given.seed + count))
    baselines = _baselines(given)
    measures = {method: partial(measure, device=device_of(given.device))}
    of_files = is_feature_file(given.weights)
    subject = _files(given) if of_files else _images(given, facts_wanted=output.wants_json)
    values: dict[str, Any] = {}
    if output.wants_json:
        from crate_mae.common.environment import environment

        values = {
            "weights": str(given.weights),
            **subject.facts,
            "command": ["crate-mae", method, *argv],
            "settings": {**settings, "seeds": list(seeds), "shots": given.shots},
            "environment": environment(),
        }
    rows: list[Row] = []

    def arrived(row: "Row") -> None:
        """Print a row and keep it, so that a stop leaves what is there."""
        from crate_mae.evaluation.rows import row_line

        rows.append(row)
        output.say(row_line(row))
        output.keep({**values, "complete": False, "rows": [row.to_dict() for row in rows]})

    try:
        rows = subject.compare(measures, seeds, baselines, arrived)
    except KeyboardInterrupt:
        if rows:
            output.say("\ninterrupted; what was measured until then:\n")
            output.say(_told(rows, given))
        raise
    output.say("\n" + _told(rows, given))
    output.write({**values, "complete": True, "rows": [row.to_dict() for row in rows]})
    return 0


def _baselines(given: argparse.Namespace) -> "tuple[Baseline, ...]":
    """The baselines that were asked for; ValueError for contradictions."""
    asked = given.baselines
    if given.no_baselines and asked not in (None, ("none",)):
        raise ValueError("--no-baselines and --baselines exclude each other: give one")
    if asked is None:
        return () if given.no_baselines else ("random", "pixels")
    if "none" in asked and len(asked) > 1:
        raise ValueError("--baselines none stands alone: leave the other names out")
    return tuple(name for name in asked if name != "none")


class Subject(NamedTuple):
    """What is measured: a function of (measures, seeds, baselines, what hears of rows); facts."""

    compare: "Callable[..., list[Row]]"
    facts: dict[str, Any]


def _images(given: argparse.Namespace, *, facts_wanted: bool) -> Subject:
    from crate_mae.evaluation.backbones import at_size, load_backbone
    from crate_mae.evaluation.compare import compare_models
    from crate_mae.sources.address import open_pair

    if given.image_size is not None and given.vitmae is not None:
        raise ValueError("a ViT-MAE takes images of its own size only: leave --image-size out")
    model, sha256 = load_backbone(given.weights)
    at_size(model, given.image_size)
    model.to(device_of(given.device))
    others, other_facts = _vitmae(model, given.vitmae)
    train, test = open_pair(
        given.address,
        train_split=given.train_split,
        test_address=given.test_address,
        test_split=given.test_split,
        limit=given.limit,
        test_limit=given.test_limit,
        reading=reading_of(given),
    )

    def compare(
        measures: "Mapping[Method, Measure]",
        seeds: tuple[int, ...],
        baselines: "tuple[Baseline, ...]",
        on_row: "Callable[[Row], None]",
    ) -> "list[Row]":
        return compare_models(
            model,
            train,
            test,
            measures=measures,
            pools=given.pool or ("mean",),
            layers=given.after or (None,),
            seeds=seeds,
            shots=given.shots,
            baselines=baselines,
            others=others,
            progress=counter_for,
            on_row=on_row,
        )

    if not facts_wanted:  # a fingerprint reads every name and label
        return Subject(compare, {})
    data = {
        part: {
            "address": source.address,
            "split": source.split,
            "count": len(source),
            "fingerprint": source.fingerprint(),
        }
        for part, source in (("train", train), ("test", test))
    }
    return Subject(compare, {"sha256": sha256, "data": data, "others": other_facts})


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


def _files(given: argparse.Namespace) -> Subject:
    options: tuple[str, ...] = ("train_split", "test_address", "test_split", "limit", "test_limit")
    options += ("image_key", "label_key", "pool", "after", "vitmae", "image_size")
    asked = [name for name in options if getattr(given, name) is not None]
    asked += ["follow_links"] if given.follow_links else []
    asked += ["baselines"] if given.baselines not in (None, ("none",)) else []
    if asked:
        raise ValueError(
            f"{_option(asked[0])} is for images: features are already fixed in their files"
        )

    from crate_mae.evaluation.compare import compare_features
    from crate_mae.evaluation.feature_files import load_pair

    train, test = user_path(given.weights), user_path(given.address)
    if not is_feature_file(given.address):
        raise ValueError(
            f"{train} holds training features, so {test} should hold test features (.safetensors,"
            " or a folder of parts): extract both, with two commands"
        )
    known, unknown, facts = load_pair(train, test)

    def compare(
        measures: "Mapping[Method, Measure]",
        seeds: tuple[int, ...],
        _: "tuple[Baseline, ...]",
        on_row: "Callable[[Row], None]",
    ) -> "list[Row]":
        rows = compare_features(
            known,
            unknown,
            tested_on=str(test),
            measures=measures,
            seeds=seeds,
            shots=given.shots,
            progress=counter_for,
        )
        for row in rows:
            on_row(row)
        return rows

    data = {"train": {"address": str(train)}, "test": {"address": str(test)}}
    return Subject(compare, {"sha256": facts["weights_sha256"], "data": data, "others": {}})


def _told(rows: "list[Row]", given: argparse.Namespace) -> str:
    """The comparison in numbers and in words, the grids of its first rows or of all, mistakes."""
    from crate_mae.evaluation.answers import Place, answers_text, feature_answers
    from crate_mae.evaluation.rows import comparison_table, confusion_table, grid_table

    verbose = given.verbose
    shown = rows if verbose else rows[:MAX_GRIDS]
    place = Place(weights=str(given.weights), address=str(given.address))
    answers = feature_answers([row.to_dict() for row in rows], place)
    parts = [comparison_table(rows), answers_text(answers), *map(grid_table, shown)]
    if len(shown) < len(rows):
        parts.append(f"{len(rows) - len(shown)} more grids: --verbose or --json FILE")
    parts += map(confusion_table, rows if verbose else ())
    return "\n\n".join(filter(None, parts))


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
