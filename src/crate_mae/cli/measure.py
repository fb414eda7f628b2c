"""Verbs that measure the layers: analyze."""

from crate_mae.cli.common import (
    WEIGHTS,
    add_data_options,
    add_device,
    counter_for,
    device_of,
    seed_number,
    verb_parser,
)


def analyze(words: list[str]) -> int:
    """The exit status of `crate-mae analyze`."""
    parser = verb_parser("analyze", "What every layer does to the tokens: a table and figures.")
    parser.add_argument("weights", help=WEIGHTS)
    parser.add_argument("images", nargs="+", help="one data address, or image files and folders")
    add_data_options(parser, limit=1000)
    parser.add_argument("--out", required=True, metavar="FOLDER", help="new or empty folder")
    parser.add_argument(
        "--compare",
        action="append",
        metavar="WEIGHTS|random",
        help="measure beside; may be repeated (random: the same network with random weights)",
    )
    parser.add_argument("--no-compare", action="store_true", help="the model alone")
    parser.add_argument("--eps-squared", type=float, default=0.01, help="eps^2 of rates (0.01)")
    parser.add_argument("--precision", default="float32", choices=["float32", "float64"])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=seed_number, default=0, help="of the random twin (0)")
    parser.add_argument("--overwrite", action="store_true", help="replace an older analysis")
    add_device(parser)
    given = parser.parse_args(words)

    from crate_mae.analysis import (
        RANDOM,
        analyse_subjects,
        check_analysis_folder,
        open_subjects,
        summary_table,
    )
    from crate_mae.data.inputs import open_images

    if given.compare and given.no_compare:
        raise ValueError("--compare and --no-compare exclude each other")
    folder = check_analysis_folder(given.out, overwrite=given.overwrite)
    beside = [] if given.no_compare else given.compare or [RANDOM]
    subjects = open_subjects(given.weights, beside, seed=given.seed)
    for subject in subjects:
        subject.model.to(device_of(given.device))
    source = open_images(given.images, split=given.data_split, limit=given.limit)
    rows, facts = analyse_subjects(
        subjects,
        source,
        folder,
        eps_squared=given.eps_squared,
        precision=given.precision,
        batch_size=given.batch_size,
        overwrite=given.overwrite,
        progress=counter_for,
    )
    print(summary_table(rows))
    for name, reason in facts["unreadable"]:
        print(f"passed over: {name} ({reason})")
    print(f"wrote {folder}: layers.csv, layers.json, and layers, weights, angles as .png and .svg")
    return 0
