"""Tables of files as people and programs write them, and what is wrong with others."""

import unicodedata
from pathlib import Path

import pytest
from source_cases import Write, labels_of, opened

from crate_mae.sources.address import open_source


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            "1.png,a\n2.png,b\n",
            r"first line names a file \(1\.png, a\): put a line of column names",
        ),
        ("1.png\n2.png\n", "first line names a file"),
        ("1.png 0\n2.png 1\n", "first line names a file"),
        ('{"file_name": "1.png"}\n', "is JSON: write a table"),
        ("file,label\n1.png,a\n".encode("utf-16-le"), "not text in UTF-8, it seems: save it as"),
        ("file,label\n1.png,a\n".encode("utf-32"), "not text in UTF-8, it seems: save it as"),
        (b"PK\x03\x04" + bytes(26) + b"[Content_Types].xml", "an Office document: save its table"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(
    write: Write, tmp_path: Path, content: str | bytes, words: str
) -> None:
    write("1.png")
    path = tmp_path / "t.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=words):
        open_source(f"csv:{path}")
    with pytest.raises(ValueError, match="is a folder: name the table in it"):
        open_source(f"csv:{tmp_path}")


def test_a_separator_that_is_told(write: Write, tmp_path: Path) -> None:
    write("1.png")
    (tmp_path / "t.csv").write_text("sep=;\nfile;label\n1.png;a,b,c\n")
    assert opened(f"csv:{tmp_path / 't.csv'}").class_names == ("a,b,c",)


def test_cells_beyond_the_columns_are_told(write: Write, tmp_path: Path) -> None:
    for number in (1, 2):
        write(f"{number}.png")
    path = tmp_path / "t.csv"
    path.write_text("file,label\n1.png,retriever, golden\n2.png,poodle,,\n")
    source = opened(f"csv:{path}")
    assert source.class_names == ("poodle", "retriever")
    (note,) = source.found.notes
    assert note.startswith("1 rows have more cells than there are columns")
    assert "(1.png,retriever,golden): write cells that hold ',' in quotes" in note


def test_numbers_with_zeros_in_front_are_names(write: Write, tmp_path: Path) -> None:
    for number in range(4):
        write(f"{number}.png")
    cells = ["007", "07", "7", "0"]
    rows = [f"{n}.png,{cell}" for n, cell in enumerate(cells)]
    (tmp_path / "t.csv").write_text("\n".join(["file,label", *rows]))
    source = opened(f"csv:{tmp_path / 't.csv'}")
    assert source.class_names is not None
    assert [source.class_names[label or 0] for label in labels_of(source)] == cells


@pytest.mark.parametrize("turned", [False, True])
def test_letters_with_accents_in_either_form(write: Write, tmp_path: Path, turned: bool) -> None:
    forms = [unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")]
    file, cell = reversed(forms) if turned else forms
    write(f"{file}.png")
    (tmp_path / "t.csv").write_text(f"file,label\n{cell}.png,a\n")
    source = opened(f"csv:{tmp_path / 't.csv'}")
    assert (len(source), source.found.passed_over) == (1, ())
