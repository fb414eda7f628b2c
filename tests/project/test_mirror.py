"""Tests lie where their subject lies: a folder for each package, a file named after its module."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS, PACKAGE, BENCHMARKS = ROOT / "tests", ROOT / "src" / "crate_mae", ROOT / "benchmarks"
FILES = sorted(path.relative_to(TESTS) for path in TESTS.rglob("*.py"))
OF_THE_PROJECT = {"project", "shared", "campaign"}


def modules_of(folder: str) -> set[str]:
    """The modules that the tests of a folder may be named after, "" for the top."""
    homes = [BENCHMARKS, BENCHMARKS / "speed"] if folder == "benchmarks" else [PACKAGE / folder]
    names = {path.stem for home in homes for path in home.glob("*.py")}
    # What a package's own name tests is its __init__.py.
    return names - {"__init__", "__main__"} | (
        {folder} if folder and "__init__" in names else set()
    )


def test_every_folder_of_tests_is_that_of_a_package() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    folders = {path.parts[0] for path in FILES if len(path.parts) > 1}
    assert folders - OF_THE_PROJECT - {"benchmarks"} <= packages


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_test_is_named_after_its_module(path: Path) -> None:
    folder = "" if path.parent == Path() else path.parent.as_posix()
    if folder == "shared" or path.name == "conftest.py":
        assert not path.name.startswith("test_"), "what tests share is no test"
    elif folder not in OF_THE_PROJECT:
        name, known = path.stem.removeprefix("test_"), modules_of(folder)
        assert path.stem == f"test_{name}"
        assert any(name == module or name.startswith(f"{module}_") for module in known), (
            f"{path} begins with no module's name: {', '.join(sorted(known))}"
        )


def test_tests_that_documents_name_exist() -> None:
    named = {
        name
        for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
        for name in re.findall(r"`tests/([\w/]+\.py)`", page.read_text(encoding="utf-8"))
    }
    assert named
    assert named <= {path.as_posix() for path in FILES}
