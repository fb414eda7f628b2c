"""Options that another word makes useless: refused from the words alone, before any work."""

import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from model_cases import digits_model
from PIL import Image
from processes import python

from crate_mae import save_model
from crate_mae.cli import VERBS, main
from crate_mae.cli.options import refuse_beside, verb_parser

REFUSED = [
    ("analyze W I --no-baselines --out O", "--seed 0", "no random baseline"),
    ("analyze W I --compare V --out O", "--seed 0", "no random baseline"),
    ("reconstruct W I --mask M --out O", "--mask-ratio 0.75", "--mask says"),
    ("reconstruct W I --mask M --out O", "--mask-kind random", "--mask says"),
    ("reconstruct W I --mask M --out O", "--seed 0", "--mask says"),
    ("map W I --method pca --out O", "--perplexity 7", "--method pca"),
    ("map W I --method pca --out O", "--seed 0", "--method pca"),
    ("neighbours W I new.png --out O", "--similarity 0.95", "no IMAGE is named"),
    ("report R --no-measure", "--limit 10", "--no-measure only gathers"),
    ("report R --no-measure", "--test-limit 5", "--no-measure only gathers"),
    ("report R --no-measure", "--device cpu", "--no-measure only gathers"),
    ("compare R S", "--overwrite", "without --out"),
    ("compare R S --json J --measure", "--overwrite", "without --out"),
    ("compare R S", "--device cpu", "without --measure"),
    ("compare R S --out O.png --overwrite", "--device auto", "without --measure"),
    ("push W --out O", "--private", "--out writes"),
    ("push W --out O", "--message words", "--out writes"),
    ("push W a/b --out O", "--revision main", "--out writes"),
    ("push W --out O --dry-run", "--overwrite", "--out writes"),
    ("export W --format pt2 --out O", "--mask-ratio 0.75", "--what encode"),
    ("export W --format pt2 --what classify --out O", "--mask-ratio 0.5", "--what classify"),
    ("convert F --out O", "--split test", "without --images"),
    ("convert F --out O", "--limit 8", "without --images"),
    ("convert F --out O", "--image-key pixels", "without --images"),
    ("convert F --out O", "--label-key kind", "without --images"),
    ("convert F --out O", "--follow-links", "without --images"),
    ("convert W --to-reference O", "--limit 8", "--to-reference reads no images"),
    ("convert W --to-reference O", "--follow-links", "--to-reference reads no images"),
]
"""(what is fine by itself, an option that means nothing beside it, what is said of it)."""


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that is said of wrong arguments, which end the process with status 2."""
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    printed = capsys.readouterr()
    assert not printed.out
    line, more = printed.err.splitlines()
    assert more == f"       crate-mae {words[0]} --help lists every option"
    return line


@pytest.mark.parametrize(("line", "option", "told"), REFUSED)
def test_what_would_be_ignored_is_refused(
    line: str, option: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    said = refused(shlex.split(f"{line} {option}"), capsys)
    assert said.startswith("error: ")
    assert told in said
    assert said.endswith(f": leave {option.split()[0]} out")
    assert not list(tmp_path.iterdir())


def test_nothing_heavy_is_imported_for_it() -> None:
    calls = [shlex.split(f"{line} {option}") for line, option, _ in REFUSED]
    heavy = ("torch", "lightning", "matplotlib", "numpy", "huggingface_hub")
    done = python(
        "import sys\n"
        "from crate_mae.cli import main\n"
        f"for words in {calls!r}:\n"
        "    try:\n"
        "        print('ran', words, main(words))\n"
        "    except SystemExit as left:\n"
        "        if left.code != 2: print('left', words, left.code)\n"
        f"print([name for name in {heavy!r} if name in sys.modules])\n"
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stdout
    assert "ran" not in done.stdout
    assert "left" not in done.stdout


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"--one": 0}, "--one"),
        ({"--one": "", "--two": None, "--three": True}, "--one and --three"),
        ({"--one": 1, "--two": 2.0, "--three": [3]}, "--one, --two and --three"),
    ],
)
def test_all_that_were_given_are_named(
    options: Mapping[str, object], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = verb_parser("some", "A verb.")
    for name in options:
        parser.add_argument(name)
    refuse_beside(parser, "so it is", dict.fromkeys(options))
    refuse_beside(parser, "so it is", dict.fromkeys(options, False))
    with pytest.raises(SystemExit, match="2"):
        refuse_beside(parser, "so it is", options)
    assert capsys.readouterr().err.startswith(f"error: so it is: leave {named} out\n")


def test_links_are_entered_in_images_alone(capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split("export W --format pt2 --out O --follow-links")
    assert "--images: give these, too" in refused(words, capsys)


@pytest.mark.parametrize(
    ("verb", "option", "default"),
    [
        ("reconstruct", "--mask-ratio", "(0.75)"),
        ("reconstruct", "--mask-kind", "(random)"),
        ("reconstruct", "--seed", "(0)"),
        ("analyze", "--seed", "(0)"),
        ("map", "--seed", "(0)"),
        ("neighbours", "--similarity", "(0.95)"),
        ("export", "--mask-ratio", "(0.75)"),
        ("convert", "--limit", "(8)"),
        ("compare", "--device", "(auto)"),
        ("report", "--device", "(auto)"),
    ],
)
def test_the_help_still_names_the_default(verb: str, option: str, default: str) -> None:
    (action,) = [a for a in VERBS[verb].parser()._actions if option in a.option_strings]
    assert action.default is None
    assert action.help is not None
    assert default in action.help


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights and a picture."""
    folder = tmp_path_factory.mktemp("beside")
    torch.manual_seed(0)
    save_model(digits_model(), folder / "weights")
    picture = Image.new("L", (16, 16))
    picture.paste(255, (4, 4, 12, 12))
    picture.save(folder / "one.png")
    return folder


@pytest.mark.parametrize(
    ("default", "given"),
    [
        (
            "reconstruct weights digits --limit 2",
            "--mask-ratio 0.75 --mask-kind random --seed 0",
        ),
        ("map weights digits --limit 20", "--seed 0"),
        ("neighbours weights digits --limit 20", "--similarity 0.95"),
    ],
)
def test_without_them_the_default_counts(
    default: str, given: str, place: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(place)
    line = f"{default} --out drawn.png --overwrite"
    assert main(shlex.split(line)) == 0
    plain = capsys.readouterr().out, (place / "drawn.png").read_bytes()
    assert main(shlex.split(f"{line} {given}")) == 0
    assert (capsys.readouterr().out, (place / "drawn.png").read_bytes()) == plain


@pytest.mark.parametrize(
    "line",
    [
        "reconstruct weights one.png --mask one.png --out masked.png",
        "map weights digits --limit 20 --method pca --out plane.png",
        "map weights digits --limit 20 --perplexity 5 --seed 3 --out tsne.png",
        "neighbours weights digits one.png --limit 20 --out near.png",
        "push weights --out pushed --licence mit",
        "push weights a/b --private --message words --revision v1 --overwrite --dry-run",
        "export weights --format pt2 --what reconstruct --mask-ratio 0.5 --out half",
        "export weights --format pt2 --out encoder",
        "convert weights --to-reference published.pth",
    ],
)
def test_plain_uses_work(line: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert main(shlex.split(line)) == 0


def test_export_hides_three_quarters_unless_told(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    asked: list[float] = []

    def note(*_: object, mask_ratio: float, **__: object) -> None:
        asked.append(mask_ratio)
        raise ValueError("enough")

    monkeypatch.setattr("crate_mae.export.exporting.export_model", note)
    line = "export weights --format pt2 --what reconstruct --out O"
    assert main(shlex.split(line)) == 1
    assert main(shlex.split(f"{line} --mask-ratio 0.5")) == 1
    assert asked == [0.75, 0.5]


def test_report_gathers_without_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def note(run: str, *_: object, measure: bool, limit: object, **more: object) -> None:
        asked.append((run, measure, limit, more["test_limit"]))
        raise ValueError("enough")

    monkeypatch.setattr("crate_mae.report.page.write_report", note)
    assert main(["report", "R", "--no-measure"]) == 1
    assert main(["report", "R", "--limit", "10", "--test-limit", "5"]) == 1
    assert asked == [("R", False, None, None), ("R", True, 10, 5)]
