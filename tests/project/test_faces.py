"""The public names of every package: listed once, there when asked for, described, enough."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import crate_mae

ROOT = Path(__file__).parents[2]
PACKAGE = Path(crate_mae.__file__).parent
FACES = sorted(
    ".".join(("crate_mae", *path.parent.relative_to(PACKAGE).parts))
    for path in PACKAGE.rglob("__init__.pyi")
)
ADAPTERS = ("crate_mae.timm", "crate_mae.transformers")
"""Register classes with other libraries when they are imported, so they cannot be loaded late."""
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "examples").glob("*.py")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((PACKAGE / "shipped").rglob("*.md")),
]


def public_names(face: str) -> list[str]:
    """The names that a package lists."""
    return list(importlib.import_module(face).__all__)


def is_described(name: str, value: object) -> bool:
    """Whether a class or function has a docstring, or a constant a string after it."""
    if not callable(value):
        return any(
            re.search(rf'^{name}(: [^=]+)? = .*?^"""', path.read_text("utf-8"), re.M | re.S)
            for path in PACKAGE.rglob("*.py")
        )
    return bool((getattr(value, "__doc__", None) or "").strip())


@pytest.mark.parametrize("face", FACES)
def test_every_public_name_exists_and_is_described(face: str) -> None:
    package = importlib.import_module(face)
    names = public_names(face)
    assert names, face
    assert len(set(names)) == len(names)
    for name in names:
        value = getattr(package, name)
        assert is_described(name, value), f"{face}.{name} has no docstring"
        assert name in dir(package)


@pytest.mark.parametrize("face", FACES)
def test_no_public_name_is_that_of_a_module_beside_it(face: str) -> None:
    """Importing the module would put it in the place of the name."""
    package = importlib.import_module(face)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert not modules & set(public_names(face))
    assert not any(isinstance(getattr(package, name), ModuleType) for name in public_names(face))


def names_in_use() -> set[str]:
    """Every name that code of the package mentions, apart from where it is defined."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                found.add(node.id)
            elif isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.ImportFrom):
                found |= {alias.name for alias in node.names}
    return found


def test_what_nothing_here_uses_is_written_about() -> None:
    """A name that only users and tests can use is of no use to users who never hear of it."""
    pages = "\n".join(path.read_text("utf-8") for path in DOCUMENTS)
    heard = names_in_use() | set(re.findall(r"\w+", pages))
    assert not [f"{face}.{name}" for face in FACES for name in set(public_names(face)) - heard]


def test_faces_are_loaded_on_first_use() -> None:
    heavy = ("torch", "numpy", "lightning", "matplotlib", "PIL", "sklearn", "huggingface_hub")
    code = f"import sys, {', '.join(FACES)}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"


def imports_of(text: str) -> list[tuple[str, str]]:
    """(module, name) of everything of this package that a document's Python imports."""
    found = []
    statement = r"^[ \t]*((?:from|import) crate_mae[^\n(]*(?:\([^)]*\))?)"
    for line in re.findall(statement, text, re.MULTILINE):
        for node in ast.walk(ast.parse(line)):
            if isinstance(node, ast.ImportFrom):
                found += [(node.module or "", alias.name) for alias in node.names]
            elif isinstance(node, ast.Import):
                found += [(alias.name, "") for alias in node.names]
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_import_from_faces_alone(path: Path) -> None:
    for module, name in imports_of(path.read_text(encoding="utf-8")):
        if module in ADAPTERS:
            assert not name or name in importlib.import_module(module).__all__
            continue
        assert module in FACES, f"{path.name} imports from {module}, whose names may move"
        assert not name or name in public_names(module), f"{module} does not list {name}"


def test_imports_in_documents_are_found() -> None:
    text = (
        "Text.\n\n    from crate_mae import a, b\n\n```python\nimport crate_mae.models\n```\n"
        "from crate_mae.x import (\n    c,\n    d,\n)\n"
    )
    assert imports_of(text) == [
        ("crate_mae", "a"), ("crate_mae", "b"), ("crate_mae.models", ""),
        ("crate_mae.x", "c"), ("crate_mae.x", "d"),
    ]  # fmt: skip
