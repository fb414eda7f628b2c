"""A small run to make reports of, and a reader of pages that knows nothing of how they are made."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from training_runs import small_config

from crate_mae.report.page import write_report
from crate_mae.training.pretrain import pretrain

VOID = {"meta", "img", "rect", "br", "hr", "link", "input"}


def small_run(folder: Path, **data: object) -> Path:
    """A finished run on digits with pictures of every epoch; `data` changes its data settings."""
    base = small_config()
    config = replace(
        base,
        data=replace(base.data, **({"val_split": "test", "val_limit": 60} | data)),  # type: ignore[arg-type]
        record=replace(base.record, reconstruct_epochs=1, reconstruct_images=2),
    )
    pretrain(config, folder, command=["crate-mae", "pretrain", "--out", str(folder)])
    return folder


def measured_run(base: Path) -> Path:
    """The folder of one run with its report, the same for all tests of a session: copy it."""
    folder = base / "reported-run"
    if not folder.exists():
        small_run(folder)
        with pytest.MonkeyPatch.context() as patch:
            short_probes(patch)
            assert write_report(folder).left_out == []
    return folder


def short_probes(patch: pytest.MonkeyPatch) -> None:
    """End every fit of a probe after 20 steps.

    A few digits can be separated, where the minimum is far away: not what reports are tested for.
    """
    patch.setattr("crate_mae.evaluation.regression.MAX_STEPS", 20)


@dataclass
class ReadTable:
    """A table as a reader finds it."""

    caption: str = ""
    heads: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    values: list[list[str | None]] = field(default_factory=list)
    scopes: list[str | None] = field(default_factory=list)


class Page(HTMLParser):
    """What stands on a page: tags that close, tables, texts, pictures, headings, addresses."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tables: list[ReadTable] = []
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.metas: list[dict[str, str | None]] = []
        self.headings: list[str] = []
        self.codes: list[str] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self._open: list[str] = []
        self._cells: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        found = dict(attrs)
        self.attributes |= set(found)
        if tag not in VOID:
            self._open.append(tag)
        if "id" in found:
            self.ids.append(str(found["id"]))
        if tag == "table":
            self.tables.append(ReadTable())
        elif tag == "tr" and "tbody" in self._open:
            self.tables[-1].rows.append([])
            self.tables[-1].values.append([])
        elif tag in ("th", "td"):
            if tag == "th":
                self.tables[-1].scopes.append(found.get("scope"))
            self._cells.append("")
            if "tbody" in self._open:
                self.tables[-1].values[-1].append(found.get("data-value"))
        elif tag == "img":
            self.images.append(found)
        elif tag == "meta":
            self.metas.append(found)
        elif tag == "a":
            self.links.append(str(found["href"]))
        elif tag in ("h1", "h2", "h3"):
            self.headings.append("")
        elif tag == "code" and "pre" in self._open:
            self.codes.append("")
        elif tag == "code":
            self.text += "`"  # within a sentence, as Markdown has it
        elif tag in ("script", "style"):
            (self.scripts if tag == "script" else self.styles).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag that closes itself."""
        assert tag in VOID, tag
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        """Check that the tag is the one that was opened last."""
        assert self._open.pop() == tag, tag
        if tag == "code" and "pre" not in self._open:
            self.text += "`"
        if tag in ("th", "td"):
            text = self._cells.pop()
            (self.tables[-1].rows[-1] if "tbody" in self._open else self.tables[-1].heads).append(
                text
            )

    def handle_data(self, data: str) -> None:
        """Gather text where it belongs."""
        inside = self._open[-1] if self._open else ""
        if inside in ("script", "style"):
            (self.scripts if inside == "script" else self.styles)[-1] += data
            return
        self.text += data
        if self._cells:
            self._cells[-1] += data
        if inside == "caption":
            self.tables[-1].caption += data
        if inside in ("h1", "h2", "h3"):
            self.headings[-1] += data
        if inside == "code" and "pre" in self._open:
            self.codes[-1] += data

    def table(self, caption: str) -> ReadTable:
        """The one table of that caption."""
        (found,) = (table for table in self.tables if table.caption == caption)
        return found


def read_page(path: Path) -> Page:
    """The page of a file."""
    return Page(path.read_text(encoding="utf-8"))


def change(path: Path, edit: Callable[[Any], None]) -> None:
    """Edit the values of a JSON file."""
    values = json.loads(path.read_text("utf-8"))
    edit(values)
    path.write_text(json.dumps(values))
