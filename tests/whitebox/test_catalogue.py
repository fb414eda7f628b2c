"""The catalogue holds every measure that an analysis writes, where it is taken, and its range."""

import pytest
import torch
from model_cases import make, tiny
from torch import Tensor

from crate_mae.analysis import summary_table
from crate_mae.figures import layer_curves
from crate_mae.sources.base import ImageSource
from crate_mae.sources.torch_datasets import wrap_dataset
from crate_mae.whitebox.catalogue import MEASURES, POINTS, Measure, measure_of, place_order
from crate_mae.whitebox.layerwise import analyse
from crate_mae.whitebox.table import Measurement


class Pictures(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Random pictures of two classes."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(index)
        return torch.rand(3, 8, 8, generator=generator), index % 2


def source() -> ImageSource:
    return wrap_dataset(Pictures())


@pytest.fixture(scope="module")
def rows() -> list[Measurement]:
    """An analysis of the paper's layers, of overcomplete dictionaries, and of other operators."""
    config = tiny(image_size=8, patch_size=4, depth=2, decoder_depth=2)
    found = []
    for name, changes in (
        ("published", {}),
        ("overcomplete", {"overcomplete": 2}),
        ("tssa", {"attention": "tssa", "sparse_step": "decoupled"}),
    ):
        model = make(tiny(**{**config.to_dict(), **changes}))
        found += analyse(model, source(), name=name).rows
    return found


def test_what_an_analysis_writes_is_described_and_the_other_way_round(
    rows: list[Measurement],
) -> None:
    written = {(row.measure, row.side, row.point) for row in rows}
    described = {
        (name, side, point)
        for name, measure in MEASURES.items()
        for side, points in measure.points.items()
        for point in points
    }
    assert written == described


def test_every_number_lies_in_its_range(rows: list[Measurement]) -> None:
    for row in rows:
        scale = MEASURES[row.measure].scale
        rounding = 1e-9 * max(1.0, abs(row.mean))
        assert scale.lowest is None or row.mean >= scale.lowest - rounding, row
        assert scale.highest is None or row.mean <= scale.highest + rounding, row


@pytest.mark.parametrize("measure", MEASURES.values(), ids=lambda measure: measure.name)
def test_a_measure_says_what_it_is(measure: Measure) -> None:
    assert measure.title
    assert measure.meaning.endswith(".")
    assert str(measure.scale)
    assert {point for points in measure.points.values() for point in points} <= set(POINTS)


def test_every_panel_has_a_title_and_every_title_a_panel() -> None:
    drawn = {
        *layer_curves._TOKENS,
        *layer_curves._WEIGHTS,
        *(panel.measure for panel in layer_curves._LAYERS),
    }
    assert drawn == {name for name, measure in MEASURES.items() if measure.panel}
    controls = {panel.control for panel in layer_curves._LAYERS} - {None}
    assert controls <= set(MEASURES)


def test_the_summary_says_what_its_columns_are(rows: list[Measurement]) -> None:
    text = summary_table(rows)
    for measure in MEASURES.values():
        explained = f"{measure.column}: {measure.title} ({measure.scale})"
        assert (explained in text) == bool(measure.column)
    heads = text.splitlines()[1]
    assert heads.split("  ")[-1] == "atoms"
    assert "R^c compress" in heads


def test_names_that_are_not_ours_stay_readable() -> None:
    unknown = measure_of("some_new_thing")
    assert (unknown.title, unknown.meaning, str(unknown.scale)) == ("some new thing", "", "")


def test_rows_stand_as_tokens_pass_them(rows: list[Measurement]) -> None:
    places = [(row.side, row.layer, row.point) for row in sorted(rows, key=place_order)]
    assert list(dict.fromkeys(places))[:5] == [
        ("encoder", 0, "input"), ("encoder", 0, "compress"), ("encoder", 0, "sparsify"),
        ("encoder", 0, "weights"), ("encoder", 1, "input"),
    ]  # fmt: skip
