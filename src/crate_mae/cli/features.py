"""Verbs that look at features: map, neighbours."""

import argparse
from typing import TYPE_CHECKING, Any

from crate_mae.cli.early import check_words
from crate_mae.cli.options import (
    CommandParser,
    Output,
    add_after,
    add_batch_size,
    add_device,
    add_image_size,
    add_images,
    add_json,
    add_part,
    add_picture_target,
    add_pool,
    add_seed,
    add_weights,
    counter_for,
    data_facts,
    device_of,
    opened_images,
    refuse_beside,
    report_unreadable,
    single,
    verb_parser,
)

if TYPE_CHECKING:
    from crate_mae.evaluation.features import Features
    from crate_mae.evaluation.neighbours import Alike, FeatureSpace
    from crate_mae.models.backbone import Backbone
    from crate_mae.sources.base import ImageSource

SHOWN_PAIRS = 20
"""Near-duplicates that are printed, those with two labels first; JSON has all that were found."""


def map_parser() -> CommandParser:
    """The parser of `crate-mae map`."""
    parser = verb_parser("map", "Features of a labelled set in the plane, coloured by class.")
    add_weights(parser)
    add_images(parser, limit=2000, address_only=True)
    parser.add_argument(
        "--method", default="tsne", choices=["pca", "tsne"], help="the way into the plane (tsne)"
    )
    add_pool(parser)
    add_after(parser)
    add_image_size(parser)
    parser.add_argument(
        "--perplexity", type=float, metavar="X", help="of t-SNE (30, less for few images)"
    )
    add_seed(parser, "of t-SNE")
    parser.set_defaults(seed=None)
    add_picture_target(parser)
    add_device(parser)
    return parser


def map_features(argv: list[str]) -> int:
    """The exit status of `crate-mae map`."""
    parser = map_parser()
    given = parser.read(argv)
    if given.method == "pca":
        refuse_beside(
            parser,
            "--method pca has no settings of t-SNE",
            {"--perplexity": given.perplexity, "--seed": given.seed},
        )
    check_words(given, picture=True)

    from crate_mae.evaluation.backbones import at_size
    from crate_mae.evaluation.feature_map import check_mappable, feature_words, project_features
    from crate_mae.evaluation.features import extract_features
    from crate_mae.figures.feature_plane import draw_feature_map
    from crate_mae.figures.style import check_figure_target
    from crate_mae.weights.weights_folder import load_model

    check_figure_target(given.out, overwrite=given.overwrite)
    source = opened_images(given)
    check_mappable(source)
    model = load_model(given.weights).to(device_of(given.device))
    at_size(model, given.image_size)
    features = extract_features(
        model,
        source,
        pool=single(given.pool, "mean"),
        layer=single(given.after, None),
        progress=counter_for("features"),
    )
    report_unreadable(features.unreadable)
    points = project_features(
        features, method=given.method, perplexity=given.perplexity, seed=given.seed or 0
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


def neighbours_parser() -> CommandParser:
    """The parser of `crate-mae neighbours`."""
    parser = verb_parser(
        "neighbours",
        "The images of a set nearest to others by features; without others, its near-duplicates and"
        " outliers.",
    )
    add_weights(parser)
    parser.add_argument("data", metavar="DATA", help="the set: a data address, file or folder")
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="images whose neighbours are looked for"
    )
    add_part(parser, None)
    parser.add_argument(
        "--count", type=int, metavar="N", help="neighbours of each image (6), or outliers (10)"
    )
    parser.add_argument(
        "--similarity", type=float, metavar="X",
        help="of near-duplicates, at least, by features (0.95); without IMAGE alone",
    )  # fmt: skip
    add_pool(parser)
    add_after(parser)
    add_image_size(parser)
    add_batch_size(parser, 256)
    add_json(parser, "the table")
    add_picture_target(parser)
    add_device(parser)
    return parser


def neighbours(argv: list[str]) -> int:
    """The exit status of `crate-mae neighbours`."""
    parser = neighbours_parser()
    given = parser.read(argv)
    if given.images:
        refuse_beside(
            parser,
            "near-duplicates are looked for where no IMAGE is named",
            {"--similarity": given.similarity},
        )
    check_words(given, picture=True)
    if given.similarity is None:
        given.similarity = 0.95
    if given.count is not None and given.count < 1:
        raise ValueError(f"--count must be at least 1, not {given.count}")
    if not -1 <= given.similarity <= 1:
        raise ValueError(f"--similarity must be from -1 to 1, not {given.similarity}")
    output = Output(given.json)

    from crate_mae.evaluation.backbones import at_size, load_backbone
    from crate_mae.evaluation.features import Features, extract_features
    from crate_mae.evaluation.neighbours import FeatureSpace
    from crate_mae.figures.style import check_figure_target
    from crate_mae.sources.base import ImageSource
    from crate_mae.sources.inputs import open_images

    check_figure_target(given.out, overwrite=given.overwrite)
    source = open_images([given.data], split=given.split, limit=given.limit)
    others = open_images(given.images) if given.images else None
    model, sha256 = load_backbone(given.weights)
    at_size(model, given.image_size)
    model.to(device_of(given.device))

    def features_of(images: ImageSource, what: str) -> Features:
        found = extract_features(
            model,
            images,
            pool=single(given.pool, "mean"),
            layer=single(given.after, None),
            batch_size=given.batch_size,
            progress=counter_for(what),
        )
        report_unreadable(found.unreadable)
        return found

    space = FeatureSpace(features_of(source, "features of the set"))
    if others is None:
        table, rows = _look_through(space, source, model, given)
    else:
        queries = features_of(others, "features")
        table, rows = _nearest(space, queries, (source, others), model, given)
    output.say(table)
    if output.wants_json:  # a fingerprint reads every name and size
        of_what = {
            "weights_sha256": sha256,
            "data": data_facts(source, [given.data]),
            "queries": None if others is None else data_facts(others, given.images),
            "pool": space.features.pool,
            "layer": space.features.layer,
            "image_size": list(model.preprocess.size),
        }
        output.write({**of_what, "images": len(space.features.names), **rows})
    output.say(f"wrote {given.out}")
    return 0


def _nearest(
    space: "FeatureSpace",
    queries: "Features",
    sources: "tuple[ImageSource, ImageSource]",
    model: "Backbone",
    given: argparse.Namespace,
) -> tuple[str, dict[str, Any]]:
    """The nearest images of each query as text and as plain values, once they are drawn."""
    from crate_mae.common.text_tables import aligned
    from crate_mae.evaluation.neighbours import pictures
    from crate_mae.figures.neighbour_sheet import MAX_ROWS, draw_image_rows

    count = 6 if given.count is None else given.count
    found = space.nearest_to(queries, count)
    known = space.features
    lines = [["image", "", "nearest", "class", "similarity"]]
    values = []
    for name, pairs in zip(queries.names, found, strict=True):
        for place, pair in enumerate(pairs, start=1):
            label = _class_of(known, pair.second)
            near = known.names[pair.second]
            first = name if place == 1 else ""
            lines.append([first, str(place), near, label or "", f"{pair.similarity:.3f}"])
            values.append(
                {"image": name, "place": place, "nearest": near, "class": label,
                 "similarity": pair.similarity}
            )  # fmt: skip
    rows = []
    drawn = range(min(MAX_ROWS, len(found)))
    shown = pictures(sources[1], queries, model.preprocess, drawn)
    for row, image in zip(drawn, shown, strict=True):
        beside = pictures(sources[0], known, model.preprocess, [p.second for p in found[row]])
        rows.append([image, *beside])
    draw_image_rows(
        rows,
        given.out,
        columns=["image", *(str(place) for place in range(1, count + 1))],
        labels=[(queries.names[row], "") for row in drawn],
        caption=f"Nearest of {len(known.names):,} images by the cosine of standardised features.",
        overwrite=given.overwrite,
    )
    return "\n".join(aligned(lines, left=(0, 2, 3))), {"neighbours": values}


def _look_through(
    space: "FeatureSpace", source: "ImageSource", model: "Backbone", given: argparse.Namespace
) -> tuple[str, dict[str, Any]]:
    """Near-duplicates and outliers of a set as text and as plain values, once they are drawn."""
    from crate_mae.common.text_tables import aligned
    from crate_mae.evaluation.neighbours import (
        CANDIDATES,
        MOST_PAIRS,
        has_more_pairs,
        near_duplicates,
        pictures,
    )
    from crate_mae.figures.neighbour_sheet import draw_image_rows

    known, prepared = space.features, model.preprocess
    candidates = space.similar_pairs(given.similarity, counter_for("pairs"))
    compared = min(len(candidates), MOST_PAIRS)
    doubles = near_duplicates(space, source, prepared, most=compared, candidates=candidates)
    # Of a large set these may not be all: whoever deletes doubles by the list has to know.
    among = ""
    if compared < len(candidates):
        among = f" among the {compared} most similar of {len(candidates):,} candidate pairs"
    nearest_alone = ""
    if has_more_pairs(space, candidates):
        nearest_alone = f"each image was compared with its {CANDIDATES} nearest alone"
    alone = space.outliers(10 if given.count is None else given.count)
    names = known.names
    lines = [["near-duplicates", "", "similarity", "pixels"]]
    listed = sorted(doubles, key=lambda pair: not _labels_differ(known, pair))[:SHOWN_PAIRS]
    for pair in listed:
        classes = _class_of(known, pair.first), _class_of(known, pair.second)
        differ = f" ({classes[0]}, {classes[1]})" if _labels_differ(known, pair) else ""
        lines.append(
            [names[pair.first], f"{names[pair.second]}{differ}", f"{pair.similarity:.3f}",
             f"{pair.pixels:.3f}"]
        )  # fmt: skip
    more = [["least like any other", "its nearest", "similarity", ""]]
    more += [[names[a.first], names[a.second], f"{a.similarity:.3f}", ""] for a in alone]
    pairs = [*doubles, *alone]
    labels = [(names[p.first], f"alike, {p.similarity:.3f}") for p in doubles]
    labels += [(names[p.first], f"outlier, {p.similarity:.3f}") for p in alone]
    # Outliers are drawn first where there are many pairs, which look alike anyway.
    order = [*range(len(doubles), len(pairs)), *range(len(doubles))]
    shown = [
        pictures(source, known, prepared, [pairs[i].first, pairs[i].second]) for i in order[:24]
    ]
    draw_image_rows(
        shown,
        given.out,
        columns=["image", "beside"],
        labels=[labels[i] for i in order[:24]],
        caption=f"{len(alone)} outliers beside the image nearest to each, then"
        f" {len(doubles)} pairs of near-duplicates{among}, of {len(names):,} images."
        + (f" For pairs {nearest_alone}." if nearest_alone else ""),
        overwrite=given.overwrite,
    )
    found = f"{len(doubles)} pairs of near-duplicates{among} in {len(names):,} images"
    apart = sum(_labels_differ(known, pair) for pair in doubles)
    found += f", {apart} of them with two labels" if apart else ""
    left_out = len(doubles) - len(listed)
    found += f"; {left_out} are not listed: --json FILE" if left_out else ""
    found += f"\n{nearest_alone}: there may be more" if nearest_alone else ""
    text = "\n".join([*aligned(lines, left=(0, 1)), "", *aligned(more, left=(0, 1)), "", found])
    return text, {
        "candidate_pairs": len(candidates),
        "compared_pairs": compared,
        "nearest_compared": CANDIDATES,
        "near_duplicates": [
            {"first": names[p.first], "second": names[p.second], "similarity": p.similarity,
             "pixels": p.pixels, "classes": [_class_of(known, p.first), _class_of(known, p.second)]}
            for p in doubles
        ],
        "outliers": [
            {"image": names[p.first], "nearest": names[p.second], "similarity": p.similarity}
            for p in alone
        ],
    }  # fmt: skip


def _labels_differ(features: "Features", pair: "Alike") -> bool:
    """Whether a pair has two labels: for one picture that is a fault of the set."""
    return _class_of(features, pair.first) != _class_of(features, pair.second)


def _class_of(features: "Features", row: int) -> str | None:
    """The name of the class of an image, or None for one without a label."""
    from crate_mae.evaluation.metrics import class_name

    if features.labels is None or int(features.labels[row]) < 0:
        return None
    return class_name(features, int(features.labels[row]))
