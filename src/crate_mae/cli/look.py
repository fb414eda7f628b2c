"""Verbs that draw: reconstruct."""

from crate_mae.cli.common import add_data_options, add_device, device_of, verb_parser


def reconstruct(words: list[str]) -> int:
    """The exit status of `crate-mae reconstruct`."""
    parser = verb_parser("reconstruct", "Original, masked, prediction, both, error: one picture.")
    parser.add_argument("weights", help="weights folder, run folder or Hub repository")
    parser.add_argument("images", nargs="+", help="image files, folders, or one data address")
    add_data_options(parser, limit=8)
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
    add_device(parser)
    given = parser.parse_args(words)

    from crate_mae.data.inputs import open_images, pixel_mask
    from crate_mae.evaluation.reconstruction import reconstruct_source
    from crate_mae.figures.base import check_figure_target
    from crate_mae.figures.reconstruction import reconstruction_sheet
    from crate_mae.models.weights import load_autoencoder

    check_figure_target(given.out, overwrite=given.overwrite)
    source = open_images(given.images, split=given.data_split, limit=given.limit)
    model = load_autoencoder(given.weights).to(device_of(given.device))
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
