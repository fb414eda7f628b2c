"""What gets installed: a wheel that works away from the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from processes import PATIENCE, python

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "crate_mae"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of a wheel built from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    source = folder / "source"
    files = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "src", "configs",
         "pyproject.toml", "README.md", "LICENSE"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in files.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run([*build, str(source)], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_every_module_and_recipe(unpacked: Path) -> None:
    modules = {str(p.relative_to(ROOT / "src")) for p in (ROOT / "src").rglob("*.py")}
    held = {str(p.relative_to(unpacked)) for p in unpacked.rglob("*") if p.is_file()}
    assert modules <= held
    assert {f"crate_mae/recipes/{p.name}" for p in (ROOT / "configs").glob("*.yaml")} <= held
    assert "crate_mae/py.typed" in held
    templates = {
        p.name for kind in ("html", "css", "js", "jinja") for p in PACKAGE.rglob(f"*.{kind}")
    }
    assert templates
    assert templates <= {Path(name).name for name in held}
    assert not [name for name in held if "tests" in Path(name).parts]


def test_the_wheel_works_alone(unpacked: Path, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(unpacked)!r})\n"
        "import crate_mae\n"
        f"assert crate_mae.__file__.startswith({str(unpacked)!r})\n"
        "from crate_mae.training.parse import parse_pretrain, recipe\n"
        f"assert str(recipe('digits')).startswith({str(unpacked)!r})\n"
        "assert parse_pretrain(['--config', 'digits'])[0].name == 'digits'\n"
        "from crate_mae.cli import main\n"
        "raise SystemExit(main(['data', 'digits', '--limit', '20']))\n"
    )
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m crate_mae --help | true",
        shell=True, capture_output=True, text=True, cwd=tmp_path, timeout=PATIENCE,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
