"""What a name may hold, made harmless: one escape for each kind of output.

Names of files and classes come from others. `printable` is for terminals, logs, figures and pages;
`markdown` and `code_span` are for Markdown; HTML is escaped by its templates. `EscapingStream` and
`EscapingFilter` stand at the exits of the command line, so that no verb can forget.
"""

import contextlib
import errno
import io
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from crate_mae.common.files import NotWrittenError

STANDARD_OUTPUT_NAME = "standard output"

_MARKDOWN = re.compile(r"([\\`*_\[\]~$])")


def printable(text: str, *, keep: str = "") -> str:
    """The text with all that could steer a terminal, hide or reorder it as `\\x1b`, say.

    That is whatever is no printable character: controls, line ends, marks of direction, halves of
    surrogates as in names that are not UTF-8. Those in `keep` stay.
    """
    if text.isprintable():
        return text
    harmful = {c for c in set(text) if not c.isprintable() and c not in keep}
    return text.translate({ord(c): ascii(c)[1:-1] for c in harmful})


def markdown(value: Any) -> str:
    """A value on one line, with nothing in it that Markdown or HTML would act on; "" for None."""
    text = " ".join(str("" if value is None else value).split())
    text = _MARKDOWN.sub(r"\\\1", printable(text))
    return re.sub(r"^([#+=-])(?=\s|$)", r"\\\1", in_cell(text))


def in_cell(text: str) -> str:
    """Markdown on one line that cannot leave its cell, and no HTML."""
    escaped = printable(" ".join(text.split())).replace("|", r"\|")
    return escaped.replace("<", "&lt;").replace(">", "&gt;")


def code_span(text: str) -> str:
    """The text as code inside a line of Markdown, whatever backticks it holds."""
    text = printable(" ".join(text.split()))
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def in_quotes(text: str) -> str:
    """The text between double quotes of a line of Python code."""
    return printable(text.replace("\\", "\\\\").replace('"', '\\"'))


class EscapingStream(io.TextIOBase):
    """A text stream that passes on lines and tabs, and every other control character escaped.

    What its encoding lacks is escaped as well, so that no result is lost while it is printed. A
    failure to write is told as one of `name`.
    """

    def __init__(self, stream: TextIO, name: str) -> None:
        super().__init__()
        self.raw, self.label = stream, name

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the stream behind."""
        return getattr(self.raw, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write and return the number of characters given."""
        shown = printable(text, keep="\n\t")
        with self._told():
            self.raw.write(shown.encode(self.encoding, "backslashreplace").decode(self.encoding))
        return len(text)

    def flush(self) -> None:
        """Flush the stream behind."""
        with self._told():
            self.raw.flush()

    def isatty(self) -> bool:
        """Whether the stream behind is a terminal."""
        return self.raw.isatty()

    def fileno(self) -> int:
        """That of the stream behind."""
        return self.raw.fileno()

    def writable(self) -> bool:
        """Always True."""
        return True

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            raise NotWrittenError(self.label, error.errno, error.strerror or str(error)) from error
        except ValueError as error:  # it has been closed
            raise NotWrittenError(self.label, errno.EBADF, str(error)) from error


class EscapingFilter(logging.Filter):
    """Escapes what log messages are filled with: a name cannot begin a line of its own."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always True, after the record's arguments have been escaped."""
        if isinstance(record.args, tuple):
            record.args = tuple(
                value if isinstance(value, int | float) else printable(str(value))
                for value in record.args
            )
        record.msg = printable(str(record.msg), keep="\n\t")
        return True


@contextlib.contextmanager
def escaping_output() -> Iterator[None]:
    """A context in which standard output and the error stream escape what is written to them."""
    before = sys.stdout, sys.stderr
    with Path(os.devnull).open("w") as nowhere:  # where a stream was closed, as by `>&-`
        sys.stdout = EscapingStream(before[0] or nowhere, STANDARD_OUTPUT_NAME)
        sys.stderr = EscapingStream(before[1] or nowhere, "the error stream")
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def unescaped(stream: Any) -> Any:
    """The stream itself, for a bar, which steers the terminal and shows nobody's names."""
    return stream.raw if isinstance(stream, EscapingStream) else stream


@contextlib.contextmanager
def unescaped_output() -> Iterator[None]:
    """A context in which standard output and the error stream are the real ones, for bars."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = unescaped(before[0]), unescaped(before[1])
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
