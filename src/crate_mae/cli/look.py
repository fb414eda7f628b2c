"""Verbs that draw: reconstruct, attention, map."""

import argparse
from pathlib import Path

from crate_mae.cli.common import (
    WEIGHTS,
    add_data_options,
    add_dense_options,
    add_device,
    add_picture_options,
    counter_for,
    device_of,
    report_unreadable,
    seed_number,
    verb_parser,
    whole_numbers,
)


def reconstruct(words: list[str]) -> int:
    """The exit status of `crate-mae reconstruct`."""
    parser = verb_parser("reconstruct", "Original, masked, prediction, both, error: one picture.")
    parser.add_argument("weights", help=WEIGHTS)
    parser.add_argument("images", nargs="+", help="image files, folders, or one data address")
    add_data_options(parser, limit=8)
    parser.add_argument(
        "--mask-ratio",
        type=float,
        nargs="+",
        default=[0.75],
        metavar="SHARE",
        help="share removed (0.75); several are set side by side",
    )
    parser.add_argument(
        "--mask-kind",
        nargs="+",
        default=["random"],
        choices=["random", "block", "grid"],
        help="how patches are chosen (random); several are set side by side",
    )
    parser.add_argument("--mask", metavar="FILE", help="image whose bright pixels are removed")
    parser.add_argument("--seed", type=seed_number, default=0, help="fixes the masks (0)")
    parser.add_argument(
        "--pixels",
        choices=["visible", "oracle", "raw"],
        help="way back to pixels for models with normalised targets (visible)",
    )
    add_picture_options(parser)
    add_device(parser)
    given = parser.parse_args(words)

    from crate_mae.data.inputs import open_images, pixel_mask
    from crate_mae.evaluation.backbones import load_completer
    from crate_mae.evaluation.reconstruction import reconstruct_settings
    from crate_mae.figures.base import check_figure_target
    from crate_mae.figures.reconstruction import reconstruction_sheet, settings_sheet

    check_figure_target(given.out, overwrite=given.overwrite)
    source = open_images(given.images, split=given.data_split, limit=given.limit)
    model = load_completer(given.weights).to(device_of(given.device))
    results, names = reconstruct_settings(
        model,
        source,
        kinds=given.mask_kind,
        ratios=given.mask_ratio,
        seed=given.seed,
        mask=None if given.mask is None else pixel_mask(given.mask, model.config),
        mode=given.pixels,
    )
    if len(results) == 1:
        ((_, result),) = results
        path = reconstruction_sheet(result, given.out, names=names, overwrite=given.overwrite)
    else:
        path = settings_sheet(results, given.out, names=names, overwrite=given.overwrite)
    for setting, result in results:
        at = f" ({setting})" if len(results) > 1 else ""
        for name, psnr, mse in zip(names, result.psnr.tolist(), result.mse.tolist(), strict=True):
            print(f"{name}{at}: PSNR {psnr:.2f} dB, MSE {mse:.5f} on removed patches")
    print(f"wrote {path}")
    return 0


def attention(words: list[str]) -> int:
    """The exit status of `crate-mae attention`."""
    parser = verb_parser(
        "attention", "Where the class token, or a patch, attends: a picture for each image."
    )
    parser.add_argument("weights", help=WEIGHTS)
    parser.add_argument("images", nargs="+", help="image files, folders, or one data address")
    add_data_options(parser, limit=4)
    parser.add_argument(
        "--layers",
        type=whole_numbers,
        metavar="N,N",
        help="layers from 0, negative from the last, or all (all)",
    )
    parser.add_argument("--heads", type=whole_numbers, metavar="N,N", help="heads, or all (all)")
    parser.add_argument(
        "--query", type=_query, default="class", metavar="class|ROW,COLUMN", help="who asks (class)"
    )
    parser.add_argument("--side", default="encoder", choices=["encoder", "decoder"])
    parser.add_argument(
        "--mass",
        type=float,
        metavar="SHARE",
        help="show the fewest patches that hold this share of the attention, such as 0.6",
    )
    add_dense_options(parser)
    add_picture_options(parser, several=True)
    add_device(parser)
    given = parser.parse_args(words)

    from crate_mae.data.inputs import open_images
    from crate_mae.evaluation.attention import attention_maps, head_numbers
    from crate_mae.evaluation.thresholds import checked_mass
    from crate_mae.evaluation.token_maps import shown_images
    from crate_mae.figures.attention import attention_sheet
    from crate_mae.figures.base import check_figure_target
    from crate_mae.models.weights import load_model

    if given.mass is not None:
        checked_mass(given.mass)
    source = open_images(given.images, split=given.data_split, limit=given.limit)
    targets = _numbered(given.out, len(source))
    for target in targets:
        check_figure_target(target, overwrite=given.overwrite)
    model = load_model(given.weights).to(device_of(given.device))
    config = model.config
    count = config.num_heads if given.side == "encoder" else config.decoder_num_heads
    heads = head_numbers(given.heads, count)
    found = shown_images(model, source, size=given.size, stride=given.stride)
    report_unreadable(found.unreadable)
    maps = attention_maps(
        model,
        found.images,
        layers=given.layers,
        query=given.query,
        side=given.side,
        stride=given.stride,
        progress=counter_for("attention"),
    )
    for index, (name, target) in enumerate(zip(found.names, targets, strict=False)):
        path = attention_sheet(
            maps,
            found.shown,
            target,
            image=index,
            heads=heads,
            mass=given.mass,
            name=name,
            overwrite=given.overwrite,
        )
        print(f"wrote {path}: {name}")
    return 0


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

    from crate_mae.data.inputs import open_images
    from crate_mae.evaluation.feature_map import check_mappable, feature_map, feature_words
    from crate_mae.evaluation.features import extract_features
    from crate_mae.figures.base import check_figure_target
    from crate_mae.figures.feature_map import feature_map_figure
    from crate_mae.models.weights import load_model

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


def _query(text: str) -> str | tuple[int, ...]:
    if text == "class":
        return text
    place = whole_numbers(text)
    if place is None or len(place) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is neither class nor ROW,COLUMN")
    return tuple(place)


def _numbered(out: str, count: int) -> list[Path]:
    path = Path(out)
    if count == 1:
        return [path]
    return [path.with_stem(f"{path.stem}-{number}") for number in range(1, count + 1)]
