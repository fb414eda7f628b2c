"""Verbs that tell what is there: data, info, doctor, and extract."""

from pathlib import Path

from crate_mae.cli.options import (
    WEIGHTS,
    add_data_options,
    add_device,
    counter_for,
    device_of,
    new_file,
    print_json,
    seed_number,
    verb_parser,
    write_json,
)


def data(words: list[str]) -> int:
    """The exit status of `crate-mae data`."""
    parser = verb_parser("data", "Counts, sizes, modes, mean and std, unreadable files, classes.")
    parser.add_argument("address", help="such as imagefolder:PATH, parquet:PATH or digits")
    add_data_options(parser)
    parser.add_argument("--json", metavar="FILE", help="also write the report as JSON (new file)")
    given = parser.parse_args(words)

    from crate_mae.sources.address import open_source
    from crate_mae.sources.describe import describe_source

    target = new_file(given.json)
    source = open_source(given.address, split=given.data_split, limit=given.limit)
    report = describe_source(source, progress=counter_for("reading"))
    print(report.table())
    write_json(target, report.to_dict())
    return 0


def doctor(words: list[str]) -> int:
    """The exit status of `crate-mae doctor`."""
    parser = verb_parser("doctor", "Versions, hardware and optional packages, for bug reports.")
    parser.add_argument("--json", action="store_true", help="as JSON, with every package")
    given = parser.parse_args(words)

    from crate_mae.common.environment import doctor_table, environment

    facts = environment()
    print_json(facts) if given.json else print(doctor_table(facts))
    return 0


def theory(words: list[str]) -> int:
    """The exit status of `crate-mae theory`."""
    parser = verb_parser(
        "theory",
        "Do compression steps move tokens where the best denoiser does? An experiment on known"
        " subspaces: table, numbers and pictures.",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="new or empty folder")
    parser.add_argument("--seeds", type=int, default=5, help="repetitions of each setting (5)")
    parser.add_argument("--seed", type=seed_number, default=0, help="the first of the seeds (0)")
    parser.add_argument(
        "--tokens", type=int, default=1024, help="tokens drawn per setting and seed (1024)"
    )
    parser.add_argument("--quick", action="store_true", help="three settings on each axis")
    parser.add_argument(
        "--format", default="png", choices=["png", "svg", "pdf"], help="of the pictures (png)"
    )
    given = parser.parse_args(words)

    from crate_mae.figures.theory_curves import draw_theory, draw_theory_moves
    from crate_mae.whitebox.denoising_study import study, study_table, sweeps, write_study

    folder = Path(given.out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} has content and is not overwritten; name another folder")
    rows = study(
        sweeps(quick=given.quick),
        seeds=given.seeds,
        first_seed=given.seed,
        num_tokens=given.tokens,
        progress=counter_for("settings"),
    )
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {name: value for name, value in vars(given).items() if name != "out"}
    written = [*write_study(rows, folder, parameters=parameters)]
    for measure in ("alignment", "turning", "error", "outside"):
        picture = folder / f"theory-{measure}.{given.format}"
        written.append(draw_theory(rows, picture, measure=measure))
    written.append(draw_theory_moves(folder / f"theory-moves.{given.format}", seed=given.seed))
    print(study_table(rows))
    print("\n".join(f"wrote {path}" for path in written))
    return 0


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
    from crate_mae.sources.inputs import open_images

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
