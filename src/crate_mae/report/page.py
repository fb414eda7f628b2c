"""One HTML file about a whole run: it needs no network, and nothing beside it."""

import base64
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import crate_mae
from crate_mae.common.escaping import printable
from crate_mae.common.files import check_folder_of, user_path, write_atomically
from crate_mae.common.progress import StartProgress
from crate_mae.report.sections import sections_of
from crate_mae.runs.contents import STALE, Run, read_run
from crate_mae.runs.measure_missing import complete_run

NAME = "report.html"
MARK = '<meta name="generator" content="crate-mae report">'
SUFFIXES = (".html", ".htm")


@dataclass(frozen=True, kw_only=True)
class Report:
    """A report that has been written."""

    path: Path
    left_out: list[str]
    """What the page could not show and why, in sentences; the page says the same."""


def write_report(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    measure: bool = True,
    limit: int | None = None,
    test_limit: int | None = None,
    device: str = "cpu",
    progress: StartProgress | None = None,
) -> Report:
    """The report of a run folder, written to `out`, by default `report.html` in the folder.

    What the run lacks is measured first and written into the run folder, unless `measure` is False;
    see `measure_missing`. Raises FileNotFoundError when the folder is no run or `out` has no
    folder, ValueError for damaged settings, another suffix than .html and limits below 1, and
    FileExistsError when `out` is there and is no report of ours.
    """
    for name, count in (("limit", limit), ("test_limit", test_limit)):
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, not {count}")
    folder = user_path(folder)
    run = read_run(folder)
    target = check_target(folder / NAME if out is None else out)
    if measure:
        complete_run(run, limit=limit, test_limit=test_limit, device=device, progress=progress)
    page = render(run)
    write_atomically(check_target(target), page)
    return Report(path=target, left_out=list(run.problems))


def check_target(out: str | Path) -> Path:
    """The path, once a report can be written there: a new file or an older report of ours."""
    path = user_path(out)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"a report is an .html file, not {path.name!r}; name it {path.stem}.html")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} in")
    if path.exists() or path.is_symlink():
        if not path.is_file():
            raise FileExistsError(f"{path} is no file; name another")
        with path.open("rb") as file:
            if MARK.encode() not in file.read(2048):
                raise FileExistsError(
                    f"{path} is no report of ours and is not overwritten; name another with --out"
                )
    check_folder_of(path)
    return path


def render(run: Run) -> str:
    """The page of a run as HTML; every text that comes from a file is escaped."""
    here = files("crate_mae.report")
    style = (here / "style.css").read_text(encoding="utf-8")
    script = (here / "script.js").read_text(encoding="utf-8")
    sections = sections_of(run)
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = (
        templates()
        .get_template("page.html")
        .render(
            title=run.name,
            origin=f"Made from {run.folder} by crate-mae {crate_mae.__version__} on {now}.",
            policy=_policy(style, script),
            style=Markup(style),
            script=Markup(script),
            sections=sections,
        )
    )
    return _printable(page)


def templates() -> Environment:
    """The templates of the page; what is put into them is escaped."""
    environment = Environment(
        loader=PackageLoader("crate_mae.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["STALE"] = STALE
    return environment


def _policy(style: str, script: str) -> str:
    """A content security policy that allows our own style and script, and pictures in the file."""
    return (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)};"
        " base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
    return f"'sha256-{digest}'"


def _printable(page: str) -> str:
    """The page without what UTF-8 cannot hold and without what steers or reorders text."""
    return printable(page, keep="\n\t\u00a0")
