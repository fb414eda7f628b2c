"""YAML of others: as the library reads it, or refused before it can grow."""

import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from crate_mae.common.yaml_files import MAX_DEPTH, check_yaml, load_yaml, read_yaml

LINES = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + LINES
MERGES = "a0: &a0 {k: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12)
)

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(values=plain)
def test_what_is_sound_is_read_as_the_library_reads_it(values: object) -> None:
    text = yaml.safe_dump(values, allow_unicode=True)
    assert load_yaml(text, origin="it") == yaml.safe_load(text)


def test_aliases_that_stay_small_are_read() -> None:
    text = "base: &b {lr: 1}\none: {<<: *b, k: 2}\ntwo: *b\n"
    assert load_yaml(text, origin="it") == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (LAUGHS, "aliases"),
        (MERGES, "aliases"),
        ("a: &a [*a]", "part of"),
        ("a: &a {b: *a}", "part of"),
        ("[" * 50_000, f"deeper than {MAX_DEPTH}"),
        ("- " * 5000 + "x", f"deeper than {MAX_DEPTH}"),
        ("a: [1", "no YAML"),
        ("a: *b", "no YAML"),
        ("\x00", "no YAML"),
        ("!!python/object/apply:os.system [id]", "no YAML"),
        ("a: 9999-99-99", "no YAML"),
    ],
    ids=["lists", "merges", "list in itself", "map in itself", "brackets", "dashes", "cut",
         "unknown", "control", "code", "date"],
)  # fmt: skip
def test_the_rest_is_refused_soon_and_by_name(text: str, told: str) -> None:
    begun = time.process_time()
    with pytest.raises(ValueError, match=told) as caught:
        load_yaml(text, origin="recipe.yaml")
    assert "recipe.yaml" in str(caught.value)
    assert time.process_time() - begun < 5


def test_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"c\.yaml is no text"):
        read_yaml(path)
    path.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ValueError, match=r"c\.yaml is larger"):
        read_yaml(path)
    with pytest.raises(ValueError, match="longer"):
        check_yaml("#" * ((1 << 20) + 1), origin="it")
