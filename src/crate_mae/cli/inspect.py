"""Verbs that look into data, models and the machine: data, analyze, theory, doctor."""

from crate_mae.cli.early import check_words
from crate_mae.cli.options import (
    CommandParser,
    Output,
    add_batch_size,
    add_device,
    add_folder_target,
    add_images,
    add_json,
    add_overwrite,
    add_seed,
    add_weights,
    counter_for,
    device_of,
    opened_images,
    reading_of,
    refuse_beside,
    report_unreadable,
    terminal_width,
    verb_parser,
)


def data_parser() -> CommandParser:
    """The parser of `crate-mae data`."""
    parser = verb_parser("data", "Counts, sizes, modes, mean and std, unreadable files, classes.")
    add_images(parser, address_only=True)
    add_json(parser, "the report")
    return parser


def data(argv: list[str]) -> int:
    """The exit status of `crate-mae data`."""
    given = data_parser().read(argv)
    check_words(given)
    output = Output(given.json)

    from crate_mae.evaluation.answers import Place, answers_text, data_answers
    from crate_mae.sources.address import open_source
    from crate_mae.sources.describe import describe_source
    from crate_mae.sources.divided import splits_of, splits_text

    (address,) = given.images
    source = open_source(
        address, split=given.split, limit=given.limit, reading=reading_of(given), tell=False
    )
    report = describe_source(source, progress=counter_for("reading"))
    splits = splits_of(source, reading_of(given))
    output.say(report.table(width=terminal_width()))
    if told := splits_text(splits, source.split):
        output.say(told)
    answers = data_answers(report.readable, report.classes, Place(address=address))
    output.say("\n" + answers_text(answers))
    output.write({**report.to_dict(), "splits": splits or dict.fromkeys(report.splits)})
    return 0


def analyze_parser() -> CommandParser:
    """The parser of `crate-mae analyze`."""
    parser = verb_parser("analyze", "What every layer does to the tokens: a table and figures.")
    add_weights(parser)
    add_images(parser, limit=1000)
    add_folder_target(parser)
    parser.add_argument(
        "--compare",
        action="append",
        metavar="WEIGHTS|random",
        help="measure beside; may be repeated (random: the same network with random weights)",
    )
    parser.add_argument("--no-baselines", action="store_true", help="the model alone")
    parser.add_argument(
        "--eps-squared", type=float, metavar="X", default=0.01, help="eps^2 of rates (0.01)"
    )
    parser.add_argument(
        "--precision", default="float32", choices=["float32", "float64"], help="(float32)"
    )
    add_batch_size(parser, 64)
    add_seed(parser, "of the random baseline")
    parser.set_defaults(seed=None)
    add_overwrite(parser, "an older analysis")
    add_device(parser)
    return parser


def analyze(argv: list[str]) -> int:
    """The exit status of `crate-mae analyze`."""
    parser = analyze_parser()
    given = parser.read(argv)
    if given.no_baselines or (given.compare and "random" not in given.compare):
        refuse_beside(parser, "there is no random baseline to draw", {"--seed": given.seed})
    check_words(given, folder=True)

    from crate_mae.analysis import (
        RANDOM,
        analyse_models,
        check_analysis_folder,
        open_models,
        summary_table,
    )
    from crate_mae.report.layer_tables import findings

    if given.compare and given.no_baselines:
        raise ValueError("--compare and --no-baselines exclude each other")
    folder = check_analysis_folder(given.out, overwrite=given.overwrite)
    beside = [] if given.no_baselines else given.compare or [RANDOM]
    subjects = open_models(given.weights, beside, seed=given.seed or 0)
    for subject in subjects:
        subject.model.to(device_of(given.device))
    source = opened_images(given)
    rows, facts = analyse_models(
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
    print("\nin words:", *(f"- {sentence}" for sentence in findings(rows)), sep="\n")
    report_unreadable(facts["unreadable"])
    print(f"wrote {folder}: layers.csv, layers.json, and layers, weights, angles as .png and .svg")
    return 0


def theory_parser() -> CommandParser:
    """The parser of `crate-mae theory`."""
    parser = verb_parser(
        "theory",
        "Do compression steps move tokens where the best denoiser does, and do layers of attention"
        " alone raise signal over noise? Experiments on known subspaces: tables and pictures.",
    )
    add_folder_target(parser)
    parser.add_argument(
        "--seeds", type=int, metavar="N", default=5, help="repeats with other seeds (5)"
    )
    add_seed(parser, "the first of the seeds")
    parser.add_argument(
        "--tokens",
        type=int,
        metavar="N",
        default=1024,
        help="tokens drawn per setting and seed (1024)",
    )
    parser.add_argument("--quick", action="store_true", help="three settings on each axis")
    parser.add_argument(
        "--format", default="png", choices=["png", "svg", "pdf"], help="of the pictures (png)"
    )
    return parser


def theory(argv: list[str]) -> int:
    """The exit status of `crate-mae theory`."""
    given = theory_parser().read(argv)
    check_words(given, folder=True)

    from crate_mae.common.files import user_path
    from crate_mae.figures.theory_curves import (
        draw_theory,
        draw_theory_layers,
        draw_theory_moves,
    )
    from crate_mae.whitebox.attention_only_study import (
        LAYERS,
        MEASURED,
        layer_settings,
        layer_study,
        layer_table,
    )
    from crate_mae.whitebox.denoising_study import study, study_table, sweeps, write_study

    folder = user_path(given.out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} has content and is not overwritten; name another folder")
    rows = study(
        sweeps(quick=given.quick),
        seeds=given.seeds,
        first_seed=given.seed,
        num_tokens=given.tokens,
        progress=counter_for("settings"),
    )
    layers = layer_study(layer_settings(), seeds=given.seeds, first_seed=given.seed)
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {name: value for name, value in vars(given).items() if name != "out"}
    written = [
        *write_study(rows, folder, parameters=parameters),
        *write_study(
            layers,
            folder,
            parameters={name: parameters[name] for name in ("seeds", "seed")},
            name="theory-layers",
            methods=LAYERS,
            measures=MEASURED,
        ),
    ]
    for measure in ("alignment", "turning", "error", "outside"):
        picture = folder / f"theory-{measure}.{given.format}"
        written.append(draw_theory(rows, picture, measure=measure))
    written.append(draw_theory_moves(folder / f"theory-moves.{given.format}", seed=given.seed))
    layers_picture = folder / f"theory-layers.{given.format}"
    written.append(draw_theory_layers(layers, layers_picture))
    print(study_table(rows), layer_table(layers), sep="\n\n")
    print("\n".join(f"wrote {path}" for path in written))
    return 0


def doctor_parser() -> CommandParser:
    """The parser of `crate-mae doctor`."""
    parser = verb_parser("doctor", "Versions, hardware and optional packages, for bug reports.")
    add_json(parser, "this and every package")
    return parser


def doctor(argv: list[str]) -> int:
    """The exit status of `crate-mae doctor`."""
    given = doctor_parser().read(argv)

    from crate_mae.common.environment import doctor_table, environment

    output = Output(given.json)
    facts = environment()
    output.say(doctor_table(facts))
    output.write(facts)
    return 0
