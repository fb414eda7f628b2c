"""Verbs that draw what a model sees: reconstruct, attention, pca, segment."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crate_mae.cli.early import check_words
from crate_mae.cli.options import (
    CommandParser,
    Output,
    add_after,
    add_dense_options,
    add_device,
    add_heads,
    add_images,
    add_json,
    add_layers,
    add_mass,
    add_picture_target,
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
    whole_numbers,
)
from crate_mae.common.escaping import printable
from crate_mae.common.files import user_path
from crate_mae.dense.segment_options import (
    DEFAULT_MASS,
    check_ignored_value,
    check_segment_options,
)

if TYPE_CHECKING:
    from crate_mae.models.depict import CrateSegmenter
    from crate_mae.sources.base import ImageSource


def reconstruct_parser() -> CommandParser:
    """The parser of `crate-mae reconstruct`."""
    parser = verb_parser("reconstruct", "Original, masked, prediction, both, error: one picture.")
    add_weights(parser)
    add_images(parser, limit=8)
    parser.add_argument(
        "--mask-ratio",
        type=float,
        nargs="+",
        metavar="SHARE",
        help="share removed (0.75); several are set side by side",
    )
    parser.add_argument(
        "--mask-kind",
        nargs="+",
        choices=["random", "block", "grid"],
        help="how patches are chosen (random); several are set side by side",
    )
    parser.add_argument(
        "--mask",
        metavar="FILE",
        help="image whose bright pixels are removed, in place of a share, a kind and a seed",
    )
    add_seed(parser, "fixes the masks")
    parser.set_defaults(seed=None)
    parser.add_argument(
        "--pixels",
        choices=["visible", "oracle", "raw"],
        help="way back to pixels for models with normalised targets (visible)",
    )
    add_picture_target(parser)
    add_device(parser)
    return parser


def reconstruct(argv: list[str]) -> int:
    """The exit status of `crate-mae reconstruct`."""
    parser = reconstruct_parser()
    given = parser.read(argv)
    if given.mask is not None:
        refuse_beside(
            parser,
            "--mask says which patches are removed",
            {
                "--mask-ratio": given.mask_ratio,
                "--mask-kind": given.mask_kind,
                "--seed": given.seed,
            },
        )
    check_words(given, picture=True)

    from crate_mae.evaluation.backbones import load_masked_autoencoder
    from crate_mae.evaluation.reconstruction import pixel_mask, reconstruct_settings
    from crate_mae.figures.reconstruction_sheet import draw_reconstruction, draw_settings
    from crate_mae.figures.style import check_figure_target

    check_figure_target(given.out, overwrite=given.overwrite)
    source = opened_images(given, varied=True)
    model = load_masked_autoencoder(given.weights).to(device_of(given.device))
    results, names = reconstruct_settings(
        model,
        source,
        kinds=given.mask_kind or ["random"],
        ratios=given.mask_ratio or [0.75],
        seed=given.seed or 0,
        mask=None if given.mask is None else pixel_mask(given.mask, model.config),
        mode=given.pixels,
    )
    if len(results) == 1:
        ((_, result),) = results
        path = draw_reconstruction(result, given.out, names=names, overwrite=given.overwrite)
    else:
        path = draw_settings(results, given.out, names=names, overwrite=given.overwrite)
    for setting, result in results:
        at = f" ({setting})" if len(results) > 1 else ""
        for name, psnr, mse in zip(names, result.psnr.tolist(), result.mse.tolist(), strict=True):
            # Errors of pixels from 0 to 1 are small numbers; those of other data have any size.
            error = f"{mse:.5f}" if result.unit_range else f"{mse:.4g} ({result.units})"
            print(f"{printable(name)}{at}: PSNR {psnr:.2f} dB, MSE {error} on removed patches")
    print(f"wrote {path}")
    return 0


def attention_parser() -> CommandParser:
    """The parser of `crate-mae attention`."""
    parser = verb_parser(
        "attention", "Where the class token, or a patch, attends: a picture for each image."
    )
    add_weights(parser)
    add_images(parser, limit=4)
    add_layers(parser, "layers whose attention is drawn", several=True)
    add_heads(parser, "heads that are drawn", several=True)
    parser.add_argument(
        "--query", type=_query, default="class", metavar="class|ROW,COLUMN", help="who asks (class)"
    )
    parser.add_argument(
        "--side", default="encoder", choices=["encoder", "decoder"], help="whose layers (encoder)"
    )
    add_mass(
        parser, "show the fewest patches that hold this share of the attention, such as 0.6 (all)"
    )
    add_dense_options(parser)
    add_picture_target(parser, several=True)
    add_device(parser)
    return parser


def attention(argv: list[str]) -> int:
    """The exit status of `crate-mae attention`."""
    given = attention_parser().read(argv)
    check_words(given)

    from crate_mae.dense.attention import attention_maps, head_numbers
    from crate_mae.dense.thresholds import checked_mass
    from crate_mae.dense.token_maps import shown_images
    from crate_mae.figures.attention_sheet import draw_attention
    from crate_mae.figures.style import check_figure_target
    from crate_mae.weights.weights_folder import load_model

    if given.mass is not None:
        checked_mass(given.mass)
    source = opened_images(given)
    targets = _numbered(given.out, len(source))
    for target in targets:
        check_figure_target(target, overwrite=given.overwrite)
    model = load_model(given.weights).to(device_of(given.device))
    config = model.config
    count = config.num_heads if given.side == "encoder" else config.decoder_num_heads
    heads = head_numbers(given.heads, count)
    found = shown_images(model, source, size=given.image_size, stride=given.stride)
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
    if maps.kind == "membership":
        print("tokens of this model attend to none: drawn is how much each belongs to a head")
    for index, (name, target) in enumerate(zip(found.names, targets, strict=False)):
        path = draw_attention(
            maps,
            found.shown,
            target,
            image=index,
            heads=heads,
            mass=given.mass,
            name=name,
            overwrite=given.overwrite,
        )
        print(f"wrote {path}: {printable(name)}")
    return 0


def _query(text: str) -> str | tuple[int, ...]:
    if text == "class":
        return text
    place = whole_numbers(text)
    if place is None or len(place) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is neither class nor ROW,COLUMN")
    return tuple(place)


def _numbered(out: str, count: int) -> list[Path]:
    path = user_path(out)
    if count == 1:
        return [path]
    return [path.with_stem(f"{path.stem}-{number}") for number in range(1, count + 1)]


def pca_parser() -> CommandParser:
    """The parser of `crate-mae pca`."""
    parser = verb_parser("pca", "Tokens coloured by their principal components, on one basis.")
    add_weights(parser)
    add_images(parser, limit=8)
    _add_tokens(parser)
    parser.add_argument(
        "--foreground",
        nargs="?",
        const="otsu",
        type=_cut,
        metavar="QUANTILE",
        help="fit and colour foreground only, cut by Otsu's threshold or at a quantile",
    )
    _add_foreground_options(parser)
    parser.add_argument(
        "--clip", type=float, metavar="SHARE", help="share of scores clipped at either end (0.01)"
    )
    parser.add_argument("--basis", metavar="FILE", help="use a saved basis; nothing is fitted")
    parser.add_argument("--save-basis", metavar="FILE", help="keep the basis, as .safetensors")
    add_dense_options(parser)
    add_picture_target(parser)
    add_device(parser)
    return parser


def pca(argv: list[str]) -> int:
    """The exit status of `crate-mae pca`."""
    parser = pca_parser()
    given = parser.read(argv)
    check_words(given, picture=True)
    place = _token_place(parser, given)
    fitting = (given.after, given.layers, given.tensor, given.foreground, given.clip)
    if given.basis and (any(v is not None for v in fitting) or given.per_image or given.flip):
        parser.error("--basis brings its layer, tensor, foreground and scale: give none of them")
    if given.per_image and given.save_basis:
        parser.error("--per-image makes many bases: --save-basis keeps one")
    if given.flip and given.foreground is None:
        parser.error("--flip turns the foreground round: give --foreground, too")

    from crate_mae.dense.basis_files import check_basis_target, load_basis, save_basis
    from crate_mae.dense.token_maps import shown_images, token_map
    from crate_mae.dense.token_pca import fit_token_map
    from crate_mae.figures.style import check_figure_target
    from crate_mae.figures.token_sheets import draw_pca
    from crate_mae.weights.weights_folder import load_model, weights_hash

    check_figure_target(given.out, overwrite=given.overwrite)
    if given.save_basis:
        check_basis_target(given.save_basis, overwrite=given.overwrite)
    source = opened_images(given)
    sha256 = weights_hash(given.weights)
    saved = load_basis(given.basis, weights_hash=sha256) if given.basis else None
    model = load_model(given.weights).to(device_of(given.device))
    found = shown_images(model, source, size=given.image_size, stride=given.stride)
    report_unreadable(found.unreadable)
    tokens = token_map(
        model,
        found.images,
        layer=place if saved is None else saved.layer,
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
    path = draw_pca(
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


def segment_parser() -> CommandParser:
    """The parser of `crate-mae segment`."""
    parser = verb_parser(
        "segment",
        "Classes of pixels, by a head that was trained on masks; else foreground without labels,"
        " from tokens or attention. With masks, its IoU.",
    )
    add_weights(parser)
    add_images(parser)
    parser.set_defaults(limit=None)
    parser.add_argument(
        "--masks", metavar="FOLDER|column:NAME",
        help="true masks: a folder of them, named as the images are, or a column of the parquet"
        " files; without --limit all images are measured (without masks, 8)",
    )  # fmt: skip
    parser.add_argument(
        "--ignore", type=_ignored, metavar="VALUE|none",
        help="value of mask pixels that do not count (255, where masks number classes; with a"
        " trained head, those of its training)",
    )  # fmt: skip
    parser.add_argument(
        "--masks-out", metavar="FOLDER",
        help="trained head: a new folder for a PNG of classes for every image, at its own size",
    )  # fmt: skip
    parser.add_argument(
        "--method", choices=["pca", "mixture", "attention"],
        help="find foreground without labels, by cutting the first component of the tokens, one of"
        " two Gaussians of each image's (which knows that objects are in the middle), or attention"
        " (pca; with a trained head, none)",
    )  # fmt: skip
    _add_tokens(parser, "; attention: the layer that attends (-1)")
    _add_foreground_options(parser, "pca: ")
    parser.add_argument(
        "--threshold", type=float, metavar="QUANTILE", help="pca: cut there (Otsu's threshold)"
    )
    add_heads(parser, "attention: this head (the mean of all)")
    add_mass(parser, "attention: share of it to keep (0.6)")
    add_dense_options(parser)
    add_json(parser, "the numbers")
    add_picture_target(parser)
    add_device(parser)
    return parser


def segment(argv: list[str]) -> int:
    """The exit status of `crate-mae segment`."""
    parser = segment_parser()
    given = parser.read(argv)
    check_words(given, picture=True)
    by_pca = {
        "--per-image": given.per_image,
        "--flip": given.flip,
        "--threshold": given.threshold is not None,
    }
    by_tokens = {"--after": given.after is not None, "--tensor": given.tensor is not None}
    by_attention = {"--heads": given.heads is not None, "--mass": given.mass is not None}
    by_method = {**by_pca, **by_tokens, **by_attention}
    method: Any = given.method or "pca"
    try:
        check_segment_options(method, by_method)
        check_ignored_value(given=given.ignore is not None, masks=given.masks is not None)
    except ValueError as error:
        parser.error(str(error))
    of_tokens = method != "attention"
    place = _token_place(parser, given) if of_tokens else single(given.layers, None)
    if given.limit is None and given.masks is None and given.masks_out is None:
        given.limit = 8

    from crate_mae.common.files import check_new_folder
    from crate_mae.dense.segment_source import SegmentSettings, segment_images
    from crate_mae.evaluation.backbones import as_segmenter
    from crate_mae.figures.style import check_figure_target
    from crate_mae.figures.token_sheets import draw_segmentation
    from crate_mae.weights.weights_folder import load_model

    check_figure_target(given.out, overwrite=given.overwrite)
    output = Output(given.json)
    if output.path is not None and output.path.absolute() == user_path(given.out).absolute():
        parser.error("--out and --json name one file: give each its own")
    if given.masks_out is not None:
        check_new_folder(given.masks_out)
    model = load_model(given.weights)
    segmenter = as_segmenter(model) if given.method is None else None
    if segmenter is not None:
        unsupervised = {**by_method, "--layers": given.layers is not None,
                        "--stride": given.stride is not None}  # fmt: skip
        if used := [flag for flag, value in unsupervised.items() if value]:
            parser.error(
                f"{', '.join(used)} is about foreground without labels, and {given.weights} has a"
                " trained head: give a --method, too, or leave it out"
            )
    elif given.masks_out is not None:
        parser.error("--masks-out is for weights with a trained head, and without --method")
    source = opened_images(given)
    model = model.to(device_of(given.device))
    if segmenter is not None:
        return _segment_by_head(segmenter, source, given, output)
    settings = SegmentSettings(
        method=method,
        layer=place,
        kind=given.tensor or "tokens",
        each=given.per_image,
        flip=given.flip,
        threshold=given.threshold,
        head=single(given.heads, None),
        mass=DEFAULT_MASS if given.mass is None else given.mass,
        size=given.image_size,
        stride=given.stride,
    )
    found = segment_images(
        model,
        source,
        settings,
        masks=given.masks,
        ignore=given.ignore,
        progress=counter_for(method),
    )
    report_unreadable(found.unreadable)
    path = draw_segmentation(
        found.segmentation,
        found.shown,
        given.out,
        truth=found.truth,
        scores=found.scores,
        names=found.names,
        overwrite=given.overwrite,
    )
    output.say(found.table())
    if output.wants_json:  # a fingerprint reads every name and size
        output.write({**_of_what(given, source), **found.to_dict()})
    output.say(f"wrote {path}")
    return 0


def _of_what(given: argparse.Namespace, source: "ImageSource") -> dict[str, Any]:
    """Which weights, images and masks the numbers of `crate-mae segment` are of."""
    from crate_mae.weights.weights_folder import weights_hash

    return {
        "weights_sha256": weights_hash(given.weights),
        "data": data_facts(source, given.images),
        "masks": given.masks,
    }


def _segment_by_head(
    model: "CrateSegmenter", source: "ImageSource", given: argparse.Namespace, output: Output
) -> int:
    """The exit status of `crate-mae segment` with weights that have a trained head."""
    from crate_mae.dense.class_masks import dense_source, with_ignored
    from crate_mae.dense.class_segmentation import SHOWN, save_class_masks, segment_classes
    from crate_mae.evaluation.backbones import at_size
    from crate_mae.figures.class_sheet import draw_classes

    at_size(model, given.image_size)
    measured = source
    if given.masks is not None:
        classes = model.classes
        if given.ignore is not None:
            classes = with_ignored(classes, given.ignore)
        measured = dense_source(source, given.masks, classes)
    found = segment_classes(model, measured, progress=counter_for("segmenting"))
    report_unreadable(found.unreadable)
    path = draw_classes(
        found.shown,
        found.predicted,
        given.out,
        classes=found.classes,
        truth=found.truth,
        names=found.names[:SHOWN],
        caption=found.words(),
        overwrite=given.overwrite,
    )
    output.say(found.table())
    if output.wants_json:  # a fingerprint reads every name and size
        output.write({**_of_what(given, source), **found.to_dict()})
    output.say(f"wrote {path}")
    if given.masks_out is not None:
        count = save_class_masks(
            model, source, given.masks_out, progress=counter_for("writing masks")
        )
        output.say(f"wrote {count} masks to {given.masks_out}")
    return 0


def _add_tokens(parser: CommandParser, more: str = "") -> None:
    add_after(parser)
    parser.add_argument(
        "--tensor",
        choices=["tokens", "compressed", "subspace"],
        help="tokens between layers or, inside one of --layers, after its MSSA half step or in its"
        " subspaces (tokens)",
    )
    add_layers(parser, f"the layer whose inside --tensor takes{more}")


def _add_foreground_options(parser: CommandParser, of: str = "") -> None:
    parser.add_argument(
        "--flip", action="store_true", help=f"{of}take the other side as foreground"
    )
    parser.add_argument("--per-image", action="store_true", help=f"{of}each image by itself")


def _token_place(parser: CommandParser, given: argparse.Namespace) -> int | None:
    """The layers that the tokens have passed, or the layer whose inside is meant."""
    inside = given.tensor not in (None, "tokens")
    if inside and given.after is not None:
        parser.error(f"--tensor {given.tensor} is inside a layer: name it by --layers, not --after")
    if given.layers is not None and not inside:
        parser.error(
            "--layers names the layer whose inside --tensor compressed or subspace takes: between"
            " layers, tokens are those --after so many of them"
        )
    place: int | None = single(given.layers if inside else given.after, None)
    return place


def _cut(text: str) -> str | float:
    if text == "otsu":
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither otsu nor a quantile") from None


def _ignored(text: str) -> int:
    if text == "none":
        return -1
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is neither none nor a value from 0 to 65535")
    return int(text)
