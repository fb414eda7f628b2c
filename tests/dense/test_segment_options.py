"""What a way of finding foreground would ignore is refused, in Python and on the command line."""

import shlex
from typing import Any

import pytest
from model_cases import digits_model

from crate_mae.cli import main
from crate_mae.dense import SegmentSettings, segment_images
from crate_mae.sources.address import open_source
from crate_mae.sources.base import ImageSource

REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("pca", {"head": 0}, "--heads 0", "head (--heads)"),
    ("pca", {"mass": 0.5}, "--mass 0.5", "mass (--mass)"),
    ("mixture", {"each": True}, "--per-image", "each (--per-image)"),
    ("mixture", {"flip": True}, "--flip", "flip (--flip)"),
    ("mixture", {"threshold": 0.0}, "--threshold 0", "threshold (--threshold)"),
    ("mixture", {"head": 0}, "--heads 0", "head (--heads)"),
    ("attention", {"kind": "subspace"}, "--tensor subspace", "kind (--tensor)"),
    (
        "attention",
        {"threshold": 0.5, "flip": True, "each": True},
        "--threshold 0.5 --flip --per-image",
        "each (--per-image), flip (--flip) and threshold (--threshold)",
    ),
]
"""(the method, settings, the same as options, how both are named)."""


def said_by_the_verb(options: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit, match="2"):
        main(shlex.split(f"segment cifar10-small digits --out never.png {options}"))
    return capsys.readouterr().err.splitlines()[0]


@pytest.mark.parametrize(("method", "settings", "options", "named"), REFUSED)
def test_what_a_method_would_ignore_is_refused(
    method: Any,
    settings: dict[str, Any],
    options: str,
    named: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = open_source("digits", limit=2)
    assert isinstance(source, ImageSource)
    with pytest.raises(ValueError, match="not for the method") as refused:
        segment_images(digits_model(), source, SegmentSettings(method=method, **settings))
    several = len(settings) > 1
    verb, them = ("are", "them") if several else ("is", "it")
    assert str(refused.value) == f"{named} {verb} not for the method {method}: leave {them} out"
    said = said_by_the_verb(f"--method {method} {options}", capsys)
    assert said == f"error: {refused.value}"


def test_a_value_of_masks_needs_masks(capsys: pytest.CaptureFixture[str]) -> None:
    source = open_source("digits", limit=2)
    assert isinstance(source, ImageSource)
    with pytest.raises(ValueError, match="is about masks") as refused:
        segment_images(digits_model(), source, SegmentSettings(), ignore=255)
    assert said_by_the_verb("--ignore 255", capsys) == f"error: {refused.value}"


def test_a_method_that_is_none() -> None:
    source = open_source("digits", limit=2)
    assert isinstance(source, ImageSource)
    wrong = SegmentSettings(method="otsu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one of pca, mixture, attention, not 'otsu'"):
        segment_images(digits_model(), source, wrong)


@pytest.mark.parametrize(("method", "options"), [("pca", "--mass 0.6"), ("attention", "--after 1")])
def test_options_that_say_the_default_are_refused_too(
    method: str, options: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = said_by_the_verb(f"--method {method} {options}", capsys)
    assert f"{options.split()[0]}" in said
    assert said.endswith(f"not for the method {method}: leave it out")


def test_what_belongs_to_a_method_is_taken() -> None:
    source = open_source("digits", limit=4)
    assert isinstance(source, ImageSource)
    for settings in (
        SegmentSettings(each=True, flip=True, threshold=0.5, kind="compressed", layer=0),
        SegmentSettings(method="mixture", kind="subspace", layer=-1),
        SegmentSettings(method="attention", head=0, mass=0.5, layer=0),
    ):
        found = segment_images(digits_model(), source, settings)
        assert len(found.segmentation.masks) == 4
