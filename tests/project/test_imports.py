"""Modules import from the rows above them and from their own row, never from a row below."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import python

import crate_mae

PACKAGE = Path(crate_mae.__file__).parent

ROWS = [
    {"common"},  # small tools that know nothing of the rest
    {"models"},
    {"weights"},
    {"vitmae"},
    {"sources"},
    {"batches"},
    {"evaluation", "dense", "whitebox"},
    {"export", "timm", "transformers"},
    {"figures"},
    {"training", "analysis"},
    {"runs"},
    {"publish", "plan"},
    {"report"},
    {"demo"},
    {"cli", "__main__"},
]
ROW_OF = {name: row for row, names in enumerate(ROWS) for name in names}

MODELS_MAY_IMPORT = {"torch", "numpy", "lazy_loader"}

FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> tuple[str, ...]:
    """The dotted name of a file inside the package, as parts; empty for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imported(path: Path, source: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Line and dotted name, as parts, of everything a file imports anywhere in it.

    `from a import b` counts as `a.b`, as b may be a module. Relative imports are made absolute;
    imports by name (`import_module("...")`, `__import__("...")`) are found, too.
    """
    here = ("crate_mae", *module_of(path))
    package = here if path.name == "__init__.py" else here[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, tuple(alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = (*base, *(node.module.split(".") if node.module else ()))
            for alias in node.names:
                yield node.lineno, (*stem, alias.name)
        elif isinstance(node, ast.Call) and node.args:
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else ""
            name = function.id if isinstance(function, ast.Name) else name
            value = node.args[0]
            if (
                name in ("import_module", "__import__")
                and isinstance(value, ast.Constant)
                and isinstance(value.value, str)
            ):
                absolute = value.value.lstrip(".")
                relative = len(value.value) - len(absolute)
                base = package[: len(package) - relative + 1] if relative else ()
                yield node.lineno, (*base, *absolute.split("."))


def upward(path: Path, source: str) -> list[str]:
    """The imports of a file that go against the order, one line of text each."""
    module = module_of(path)
    if not module or module[0] not in ROW_OF:  # the package itself only lists public names
        return []
    row = ROW_OF[module[0]]
    wrong = []
    for line, name in imported(path, source):
        if name[0] != "crate_mae" or len(name) == 1 or name[1] not in ROW_OF:
            continue
        if ROW_OF[name[1]] > row:
            wrong.append(f"{'/'.join(module)}:{line} imports {'.'.join(name)}")
    return wrong


def test_every_module_has_a_row() -> None:
    homeless = {module_of(path)[0] for path in FILES if module_of(path)} - set(ROW_OF)
    assert not homeless, "give the new module a place in the order"


@pytest.mark.parametrize("path", sorted((PACKAGE / "common").glob("*.py")), ids=lambda p: p.stem)
def test_small_tools_use_nothing_of_the_package(path: Path) -> None:
    inside = [n for _, n in imported(path, path.read_text("utf-8")) if n[0] == "crate_mae"]
    assert all(len(name) == 1 or name[1] == "common" for name in inside), inside


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_imports_from_a_row_below_its_own(path: Path) -> None:
    assert upward(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if module_of(path)[:1] == ("models",)],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_models_need_few_packages(path: Path) -> None:
    roots = {name[0] for _, name in imported(path, path.read_text(encoding="utf-8"))}
    foreign = roots - set(sys.stdlib_module_names) - MODELS_MAY_IMPORT - {"crate_mae"}
    assert not foreign


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("models/a.py", "import crate_mae.training.loop", True),
        ("models/a.py", "from crate_mae import training", True),
        ("models/a.py", "from crate_mae.training import loop", True),
        ("models/a.py", "from ..training import loop", True),
        ("models/a.py", "from .. import training", True),
        ("models/__init__.py", "from ..sources import images", True),
        ("models/__init__.py", "from . import layers", False),
        ("models/a.py", "def f():\n    from crate_mae.sources import images", True),
        ("models/a.py", "if TYPE_CHECKING:\n    import crate_mae.cli", True),
        ("models/a.py", "import_module('crate_mae.sources.images')", True),
        ("models/a.py", "importlib.import_module('..sources', __package__)", True),
        ("models/a.py", "from crate_mae.models.layers import MSSA", False),
        ("models/a.py", "from .layers import MSSA", False),
        ("models/a.py", "from crate_mae import __version__", False),
        ("models/a.py", "import torch, sources", False),
        ("training/a.py", "from crate_mae.figures import grid", False),
        ("training/a.py", "from crate_mae import report", True),
        ("evaluation/a.py", "from crate_mae.whitebox import rates", False),
        ("figures.py", "from .evaluation import probe", False),
        ("figures.py", "from .training import loop", True),
        ("report/a/b.py", "from ...cli import main", True),
        ("cli.py", "from crate_mae.demo import run_demo", False),
        ("__main__.py", "from crate_mae.cli import main", False),
    ],
)
def test_the_check_itself(module: str, source: str, wrong: bool) -> None:
    assert bool(upward(PACKAGE / module, source)) == wrong


@pytest.mark.parametrize("module", ["crate_mae", "crate_mae.models.config"])
def test_light_modules_load_without_torch(module: str) -> None:
    heavy = ("torch", "numpy", "lightning", "matplotlib", "PIL", "sklearn", "huggingface_hub")
    code = f"import sys, {module}; print([m for m in {heavy!r} if m in sys.modules])"
    assert python(code).stdout.strip() == "[]"


def test_models_load_without_the_heavy_rest() -> None:
    heavy = ("lightning", "matplotlib", "torchvision", "sklearn", "timm", "pyarrow")
    names = "crate_mae.weights.weights_folder, crate_mae.models.classifier, crate_mae.models.masks"
    code = f"import sys, {names}; print([m for m in {heavy!r} if m in sys.modules])"
    assert python(code).stdout.strip() == "[]"
