"""Names of files and classes do nothing to a terminal, a log, Markdown or code."""

import ast
import io
import logging
import sys
from io import StringIO, TextIOWrapper

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from crate_mae.common.escaping import (
    EscapingFilter,
    EscapingStream,
    code_span,
    escaping_output,
    in_quotes,
    markdown,
    printable,
    unescaped,
)
from crate_mae.common.files import NotWrittenError

HOSTILE = "\x1b[31mred\x07\r\n\u202egnp.exe\x9b0m\udce9.jpg"
texts = st.text(st.characters() | st.sampled_from("`|*_[]()<>#!&~$\\\n\r\x1b\u202e"), max_size=30)


@given(text=texts)
def test_printable_text_is_printable_and_printed_text_stays(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    if text.isprintable():
        assert shown == text


def test_what_steers_a_terminal_is_shown_instead() -> None:
    assert printable(HOSTILE) == (r"\x1b[31mred\x07\r\n\u202egnp.exe\x9b0m\udce9.jpg")
    assert printable("café 猫 ± 😀") == "café 猫 ± 😀"


@given(text=texts)
def test_a_name_stays_text_in_markdown(text: str) -> None:
    """As a parser of Markdown sees it: one paragraph of plain text, and nothing in it acts."""
    tokens = (
        MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(f"x {markdown(text)} y")
    )
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    kinds = {child.type for child in tokens[1].children or []}
    assert kinds <= {"text", "text_special"}, kinds


@given(text=texts)
def test_a_name_stays_in_its_cell(text: str) -> None:
    table = f"| a | b |\n|---|---|\n| {markdown(text)} | last |\n"
    tokens = MarkdownIt("commonmark").enable("table").parse(table)
    cells = [token for token in tokens if token.type == "td_open"]
    assert len(cells) == 2


@given(text=texts)
def test_a_code_span_holds_its_text(text: str) -> None:
    tokens = MarkdownIt("commonmark").parse(f"x {code_span(text)} y")
    children = (tokens[1].children or []) if len(tokens) == 3 else []
    wanted = printable(" ".join(text.split()))
    if wanted:
        assert [child.type for child in children] == ["text", "code_inline", "text"]
        assert children[1].content.strip() == wanted.strip()


@given(text=texts)
def test_a_name_in_quotes_is_one_string_of_python(text: str) -> None:
    line = f'load_model("{in_quotes(text)}")'
    call = ast.parse(line, mode="eval").body
    assert isinstance(call, ast.Call)
    assert isinstance(call.args[0], ast.Constant)


def test_output_is_escaped_and_lines_stay_lines() -> None:
    raw = StringIO()
    stream = EscapingStream(raw, "it")
    print("one\ttwo", HOSTILE, file=stream)
    assert raw.getvalue() == "one\ttwo \\x1b[31mred\\x07\\r\n\\u202egnp.exe\\x9b0m\\udce9.jpg\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_what_an_encoding_lacks_is_escaped_not_lost(encoding: str) -> None:
    """The characters stand against the codec itself, with its own way of escaping."""
    file = io.BytesIO()
    stream = EscapingStream(TextIOWrapper(file, encoding, write_through=True), "it")
    print("58.1 ± 0.3 猫", file=stream)
    assert file.getvalue() == "58.1 ± 0.3 猫\n".encode(encoding, "backslashreplace")


def test_streams_are_put_back_and_bars_get_the_real_one() -> None:
    before = sys.stdout
    with escaping_output():
        assert isinstance(sys.stdout, EscapingStream)
        assert unescaped(sys.stdout) is before
    assert sys.stdout is before


def test_a_name_cannot_begin_a_line_of_the_log() -> None:
    values = ("a\nERROR b\x1b", 1, 0.5)
    message = "passed over: %s (%d of %g)\nsecond"
    record = logging.LogRecord("x", logging.WARNING, "p", 1, message, values, None)
    EscapingFilter().filter(record)
    assert record.getMessage() == "passed over: a\\nERROR b\\x1b (1 of 0.5)\nsecond"


def test_output_that_cannot_be_written_is_named() -> None:
    class Full(StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(NotWrittenError, match=r"standard output could not be written .*full"):
        print("x", file=EscapingStream(Full(), "standard output"))


def test_closed_streams_take_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # as Python has it after `>&-`
    monkeypatch.setattr(sys, "stderr", None)
    with escaping_output():
        print("x")
        assert not sys.stdout.isatty()
        assert not sys.stderr.isatty()
    assert sys.stdout is None
