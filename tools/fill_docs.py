"""What documents say of the code, taken from the code: `make format` writes it, tests hold it.

    python tools/fill_docs.py           write docs/architecture.md, model.md and family.md
    python tools/fill_docs.py --check   exit status 1 where they are not up to date

docs/architecture.md gets the first sentence of every module; docs/model.md and docs/family.md the
file and line of every equation's function.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "crate_mae"
ARCHITECTURE, MODEL = ROOT / "docs" / "architecture.md", ROOT / "docs" / "model.md"
FAMILY = ROOT / "docs" / "family.md"
BEGIN, END = "<!-- modules -->", "<!-- /modules -->"
ORDER = (
    "common", "models", "weights", "vitmae", "sources", "batches", "evaluation", "dense",
    "whitebox", "figures", "training", "runs", "report", "publish", "plan", "cli",
)  # fmt: skip
"""Packages in the order of imports: each stands on those before it."""
ROW = re.compile(r"\| `([\w.]+)`\s*\| \[[\w.]+:\d+\]\([^)]*\)")


def listing() -> str:
    """Every package with its sentence, and every module in it with the first of its docstring."""
    lines = []
    for name in ORDER:
        lines += ["", f"**`{name}/`** {first_sentence(SOURCE / name / '__init__.py')}", ""]
        lines += [
            f"- `{path.name}`: {first_sentence(path)}"
            for path in sorted((SOURCE / name).glob("*.py"))
            if path.name != "__init__.py"
        ]
    return "\n".join(lines).strip("\n")


def first_sentence(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]


def with_listing(page: str) -> str:
    """The page with the listing between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{listing()}\n\n{END}{after}"


def definitions() -> Iterator[tuple[str, str, int]]:
    """(name or Class.name, file from the root, line) of functions; `forward` is its class."""
    for path in sorted(SOURCE.rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        for item in ast.parse(path.read_text("utf-8")).body:
            if isinstance(item, ast.FunctionDef):
                yield item.name, file, item.lineno
            elif isinstance(item, ast.ClassDef):
                for part in item.body:
                    if isinstance(part, ast.FunctionDef):
                        line = item.lineno if part.name == "forward" else part.lineno
                        yield f"{item.name}.{part.name}", file, line


def with_lines(page: str) -> str:
    """The page with the present file and line of every equation."""
    places = {name: (file, line) for name, file, line in definitions()}

    def cell(found: re.Match[str]) -> str:
        name = found.group(1)
        file, line = places[name]
        return f"| `{name}` | [{Path(file).name}:{line}](../{file}#L{line})"

    return ROW.sub(cell, page)


def main() -> int:
    """The exit status: 0, or 1 when `--check` finds a page that is not up to date."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="write nothing")
    given = parser.parse_args()
    stale = []
    for path, fill in ((ARCHITECTURE, with_listing), (MODEL, with_lines), (FAMILY, with_lines)):
        before = path.read_text("utf-8")
        after = fill(before)
        if given.check and " ".join(after.split()) != " ".join(before.split()):
            stale.append(path.name)
        elif not given.check and after != before:
            path.write_text(after, encoding="utf-8")
    if stale:
        print(f"not up to date: {', '.join(stale)}; make format brings them there", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
