"""Verbs that take features out and look at them: extract, map."""

from crate_mae.cli.options import (
    CommandParser,
    add_after,
    add_batch_size,
    add_device,
    add_image_size,
    add_images,
    add_overwrite,
    add_picture_target,
    add_pool,
    add_seed,
    add_weights,
    counter_for,
    device_of,
    opened_images,
    report_unreadable,
    single,
    verb_parser,
)

POOLS = ("cls", "mean", "both")


def extract_parser() -> CommandParser:
    """The parser of `crate-mae extract`."""
    parser = verb_parser("extract", "Features of images, with names, labels and preprocessing.")
    add_weights(parser, ", ViT-MAE folder")
    add_images(parser)
    add_pool(parser, (*POOLS, "tokens"))
    add_after(parser)
    add_image_size(parser)
    add_batch_size(parser, 256)
    parser.add_argument(
        "--out", required=True, metavar="FILE", help=".safetensors, .npz or .parquet"
    )
    add_overwrite(parser)
    add_device(parser)
    return parser


def extract(argv: list[str]) -> int:
    """The exit status of `crate-mae extract`."""
    given = extract_parser().read(argv)

    from crate_mae.evaluation.backbones import at_size, load_backbone
    from crate_mae.evaluation.feature_files import check_target, save_features
    from crate_mae.evaluation.features import extract_features

    pool = single(given.pool, "mean")
    check_target(given.out, overwrite=given.overwrite)
    source = opened_images(given)
    model, sha256 = load_backbone(given.weights)
    at_size(model, given.image_size)
    features = extract_features(
        model.to(device_of(given.device)),
        source,
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
    add_image_size(parser)
    parser.add_argument("--perplexity", type=float, metavar="X", default=30.0, help="of t-SNE (30)")
    add_seed(parser, "of t-SNE")
    add_picture_target(parser)
    add_device(parser)
    return parser


def map_features(argv: list[str]) -> int:
    """The exit status of `crate-mae map`."""
    given = map_parser().read(argv)

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
