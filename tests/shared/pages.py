"""The project's Markdown pages, and what a reader would take out of them and run."""

import re
import shlex
import tomllib
from pathlib import Path

import mdformat

ROOT = Path(__file__).parents[2]

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "tests" / "shared" / "golden" / "README.md",
]
"""Every page that people write; model cards and records of benchmarks are written by programs."""

SMALL = [
    *("--model.dim", "16", "--model.depth", "1", "--model.decoder_depth", "1"),
    *("--model.num_heads", "2", "--model.decoder_num_heads", "2", "--optim.epochs", "2"),
    *("--optim.batch_size", "8", "--optim.warmup_epochs", "1", "--trainer.accelerator", "cpu"),
]
"""Words that make any training command of the documents small."""

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks_of(page: str) -> list[tuple[str, str]]:
    """Language and content of every block of code of a page, in order."""
    return [(language, content) for language, content in _FENCE.findall(page)]


def commands_in(block: str, program: str) -> list[list[str]]:
    """The words behind the program's name, a list for every command of a block of shell lines.

    A line that ends with a backslash goes on in the next one; what follows a # is no part of it.
    """
    lines = block.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [rest for name, *rest in filter(None, words) if name == program]


def commands_of(page: str, program: str = "crate-mae") -> list[list[str]]:
    """The words behind the program's name, a list for every command of a page."""
    blocks = [content for language, content in blocks_of(page) if language == "sh"]
    return [words for block in blocks for words in commands_in(block, program)]


def code_of(page: str) -> list[str]:
    """The blocks of Python of a page."""
    return [content for language, content in blocks_of(page) if language == "python"]


def section_of(page: str, heading: str) -> str:
    """What stands below a heading, up to the next one of its level or above."""
    level = heading.partition(" ")[0]
    _, found, rest = page.partition(f"\n{heading}\n")
    assert found, heading
    return re.split(rf"^#{{1,{len(level)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def tables_of(page: str) -> list[list[list[str]]]:
    """The tables of a page in order: rows of cells, without the line below the head."""
    tables: list[list[list[str]]] = []
    inside = False
    for line in page.splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        if not inside:
            tables.append([])
        inside = True
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if set("".join(cells)) - set("-: "):
            tables[-1].append(cells)
    return tables


def anchors_of(page: str) -> set[str]:
    """The names that links into a page can end with: its headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(_FENCE, "", page), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


def laid_out(page: str) -> str:
    """A page as `make format` writes it."""
    options = tomllib.loads((ROOT / ".mdformat.toml").read_text("utf-8"))
    extensions = options.pop("extensions")
    return mdformat.text(page, options=options, extensions=extensions)
