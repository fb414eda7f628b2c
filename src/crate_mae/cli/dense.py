"""Verbs that draw dense tokens: pca, segment."""

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
    new_file,
    report_unreadable,
    verb_parser,
    write_json,
)


def pca(words: list[str]) -> int:
    """The exit status of `crate-mae pca`."""
    parser = verb_parser("pca", "Tokens coloured by their principal components, on one basis.")
    _add_images(parser)
    parser.add_argument(
        "--foreground",
        nargs="?",
        const="otsu",
        type=_cut,
        metavar="QUANTILE",
        help="fit and colour foreground only, cut by Otsu's threshold or at a quantile",
    )
    parser.add_argument("--flip", action="store_true", help="take the other side as foreground")
    parser.add_argument("--clip", type=float, help="share of scores clipped at either end (0.01)")
    parser.add_argument("--per-image", action="store_true", help="a basis for each image")
    parser.add_argument("--basis", metavar="FILE", help="use a saved basis; nothing is fitted")
    parser.add_argument("--save-basis", metavar="FILE", help="keep the basis, as .safetensors")
    add_picture_options(parser)
    given = parser.parse_args(words)
    fitting = (given.layer, given.tensor, given.foreground, given.clip)
    if given.basis and (any(v is not None for v in fitting) or given.per_image or given.flip):
        parser.error("--basis brings its layer, tensor, foreground and scale: give none of them")
    if given.per_image and given.save_basis:
        parser.error("--per-image makes many bases: --save-basis keeps one")
    if given.flip and given.foreground is None:
        parser.error("--flip turns the foreground round: give --foreground, too")

    from crate_mae.data.inputs import open_images
    from crate_mae.evaluation.basis_files import check_basis_target, load_basis, save_basis
    from crate_mae.evaluation.token_maps import shown_images, token_map
    from crate_mae.evaluation.token_pca import fit_token_map
    from crate_mae.figures.base import check_figure_target
    from crate_mae.figures.tokens import pca_sheet
    from crate_mae.models.weights import load_model, weights_hash

    check_figure_target(given.out, overwrite=given.overwrite)
    if given.save_basis:
        check_basis_target(given.save_basis, overwrite=given.overwrite)
    source = open_images(given.images, split=given.data_split, limit=given.limit)
    sha256 = weights_hash(given.weights)
    saved = load_basis(given.basis, weights_hash=sha256) if given.basis else None
    model = load_model(given.weights).to(device_of(given.device))
    found = shown_images(model, source, size=given.size, stride=given.stride)
    report_unreadable(found.unreadable)
    tokens = token_map(
        model,
        found.images,
        layer=given.layer if saved is None else saved.layer,
        kind=(given.tensor or "tokens") if saved is None else saved.kind,
        stride=given.stride,
        progress=counter_for("tokens"),
    )
    bases = (
        [saved]
        if saved is not None
        else fit_token_map(
            tokens,
            each=given.per_image,
            quantile=0.01 if given.clip is None else given.clip,
            foreground=given.foreground is not None,
            threshold=None if given.foreground == "otsu" else given.foreground,
            flip=given.flip,
        )
    )
    path = pca_sheet(
        tokens,
        bases if given.per_image else bases[0],
        found.shown,
        given.out,
        names=found.names,
        overwrite=given.overwrite,
    )
    print(f"wrote {path}")
    if given.save_basis:
        kept = save_basis(
            bases[0], given.save_basis, weights_hash=sha256, overwrite=given.overwrite
        )
        print(f"wrote {kept}")
    return 0


def segment(words: list[str]) -> int:
    """The exit status of `crate-mae segment`."""
    parser = verb_parser(
        "segment", "Foreground without labels, from tokens or attention; with masks, its IoU."
    )
    _add_images(parser)
    parser.add_argument("--masks", metavar="FOLDER", help="true masks, named as the images are")
    parser.add_argument("--method", default="pca", choices=["pca", "attention"], help="(pca)")
    parser.add_argument("--per-image", action="store_true", help="pca: each image by itself")
    parser.add_argument("--flip", action="store_true", help="pca: take the other side")
    parser.add_argument(
        "--threshold", type=float, metavar="QUANTILE", help="pca: cut there (Otsu's threshold)"
    )
    parser.add_argument("--head", type=int, help="attention: this head (the mean of all)")
    parser.add_argument("--mass", type=float, help="attention: share of it to keep (0.6)")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers as JSON (new file)")
    add_picture_options(parser)
    given = parser.parse_args(words)
    by_pca = {"--per-image": given.per_image, "--flip": given.flip, "--tensor": given.tensor,
              "--threshold": given.threshold is not None}  # fmt: skip
    by_attention = {"--head": given.head is not None, "--mass": given.mass is not None}
    strange = by_attention if given.method == "pca" else by_pca
    if any(strange.values()):
        named = ", ".join(flag for flag, used in strange.items() if used)
        parser.error(f"{named} does not belong to --method {given.method}")

    from crate_mae.data.inputs import open_images
    from crate_mae.evaluation.segment_source import SegmentSettings, segment_source
    from crate_mae.figures.base import check_figure_target
    from crate_mae.figures.tokens import segmentation_sheet
    from crate_mae.models.weights import load_model, weights_hash

    check_figure_target(given.out, overwrite=given.overwrite)
    target = new_file(given.json)
    if target is not None and target.absolute() == Path(given.out).absolute():
        parser.error("--out and --json name one file: give each its own")
    source = open_images(given.images, split=given.data_split, limit=given.limit)
    settings = SegmentSettings(
        method=given.method,
        layer=given.layer,
        kind=given.tensor or "tokens",
        each=given.per_image,
        flip=given.flip,
        threshold=given.threshold,
        head=given.head,
        mass=0.6 if given.mass is None else given.mass,
        size=given.size,
        stride=given.stride,
    )
    model = load_model(given.weights).to(device_of(given.device))
    found = segment_source(
        model, source, settings, masks=given.masks, progress=counter_for(given.method)
    )
    report_unreadable(found.unreadable)
    path = segmentation_sheet(
        found.segmentation,
        found.shown,
        given.out,
        truth=found.truth,
        scores=found.scores,
        names=found.names,
        overwrite=given.overwrite,
    )
    print(found.table())
    write_json(target, {"weights_sha256": weights_hash(given.weights), **found.to_dict()})
    print(f"wrote {path}")
    return 0


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", help=WEIGHTS)
    parser.add_argument("images", nargs="+", help="image files, folders, or one data address")
    add_data_options(parser, limit=8)
    parser.add_argument(
        "--layer",
        type=int,
        help="encoder layers the tokens have passed, from 0 (all, and the final norm); of"
        " attention the layer itself, from 0 (the last)",
    )
    parser.add_argument(
        "--tensor",
        choices=["tokens", "compressed", "subspace"],
        help="tokens between layers or, inside the layer numbered, after its MSSA half step or in"
        " its subspaces (tokens)",
    )
    add_dense_options(parser)
    add_device(parser)


def _cut(text: str) -> str | float:
    if text == "otsu":
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither otsu nor a quantile") from None
