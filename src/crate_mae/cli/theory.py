"""The verb that asks whether compression denoises: theory."""

from pathlib import Path

from crate_mae.cli.common import counter_for, seed_number, verb_parser


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

    from crate_mae.figures.theory import theory_curves, theory_moves
    from crate_mae.whitebox.denoising_study import study, sweeps
    from crate_mae.whitebox.denoising_table import study_table, write_study

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
        written.append(theory_curves(rows, picture, measure=measure))
    written.append(theory_moves(folder / f"theory-moves.{given.format}", seed=given.seed))
    print(study_table(rows))
    print("\n".join(f"wrote {path}" for path in written))
    return 0
