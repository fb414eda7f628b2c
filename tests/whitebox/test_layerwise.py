"""The layer table against measures taken by hand along the same path."""

import csv
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from model_cases import VARIANTS, golden, golden_model, images_for, make, tiny
from torch import Tensor

from crate_mae.models.classifier import CrateClassifier
from crate_mae.models.overcomplete import OvercompleteISTA
from crate_mae.models.patches import grid_of
from crate_mae.sources.base import ImageSource
from crate_mae.sources.images import ImageFacts, Sample, UnreadableImage
from crate_mae.sources.torch_datasets import wrap_dataset
from crate_mae.whitebox import classes, measures
from crate_mae.whitebox.geometry import subspace_bases
from crate_mae.whitebox.layerwise import Precision, analyse
from crate_mae.whitebox.table import Measurement, curve, models_of, read_table, write_table


class Pictures(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Float images with labels."""

    def __init__(self, images: Tensor, labels: list[int]) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.labels[index]


def source_of(images: Tensor, labels: list[int] | None = None) -> ImageSource:
    """A source of images on the [0, 1] scale."""
    return wrap_dataset(Pictures(images, labels or [index % 2 for index in range(len(images))]))


def value(rows: list[Measurement], measure: str, layer: int, point: str, side: str) -> Measurement:
    """The one row of a measure at a place."""
    (row,) = [
        row
        for row in rows
        if (row.measure, row.layer, row.point, row.side) == (measure, layer, point, side)
        and row.head is None
    ]
    return row


@pytest.fixture
def images() -> Tensor:
    return images_for(tiny(), batch=5).sigmoid()


def test_rates_of_the_golden_file() -> None:
    model = golden_model().eval()
    # The stored images are model input already, not pixels: they are undone first.
    low, high = golden()["images"].amin(), golden()["images"].amax()
    pixels = (golden()["images"] - low) / (high - low)
    channels = model.config.channels

    model.preprocess = replace(
        model.preprocess,
        mean=(float(-low / (high - low)),) * channels,
        std=(float(1 / (high - low)),) * channels,
    )
    rows = analyse(model, source_of(pixels), batch_size=1).rows
    for layer, (mean, std) in enumerate(golden()["full.coding_rate_mean_std"].tolist()):
        row = value(rows, "subspace_coding_rate", layer, "input", "encoder")
        assert row.mean == pytest.approx(mean, rel=1e-5)
        assert row.std == pytest.approx(std, rel=1e-3)
        zeros = value(rows, "zero_fraction", layer, "sparsify", "encoder").mean
        assert zeros == pytest.approx(float(golden()["full.zero_fraction"][layer]), abs=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_half_steps_compose_to_the_model(name: str) -> None:
    config = VARIANTS[name]
    model, images = make(config).eval(), images_for(config)
    with torch.no_grad():
        steps = list(model.half_steps(images))
        assert len(steps) == 2 * (config.depth + config.decoder_depth)
        codes = steps[2 * config.depth - 1].after
        assert torch.equal(model.encoder.norm(codes), model.encode(images))
        prediction = model.prediction(model.decoder_norm(steps[-1].after))[:, 1:]
        grid = grid_of(images, config.patch_hw)
        assert torch.equal(prediction, model.decode(model.encode(images), None, grid))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_a_finite_table_that_ignores_the_batch_size(name: str) -> None:
    config = VARIANTS[name]
    model, images = make(config), images_for(config, batch=3).sigmoid()
    tables = [
        analyse(model, source_of(images), batch_size=size, precision="float64").rows
        for size in (1, 3)
    ]
    assert [replace_numbers(row) for row in tables[0]] == [
        replace_numbers(row) for row in tables[1]
    ]
    for one, other in zip(*tables, strict=True):
        assert math.isfinite(one.mean)
        # The rank's small singular values are roots of rounding errors.
        close = 1e-6 if one.measure.startswith("effective_rank") else 1e-8
        assert one.mean == pytest.approx(other.mean, abs=close, rel=close)
        assert (one.std is None) == (other.std is None)
        if one.std is not None and other.std is not None:
            assert one.std == pytest.approx(other.std, abs=1e-6)
    mirrored = config.depth == config.decoder_depth
    assert any(row.measure == "mirror_cka" for row in tables[0]) == mirrored
    assert next(model.parameters()).dtype == torch.float32, "the model itself is left alone"


def replace_numbers(row: Measurement) -> tuple[object, ...]:
    """What a row is about."""
    return (row.side, row.layer, row.point, row.measure, row.head, row.images, row.tensor)


def test_rows_are_the_measures_taken_by_hand(images: Tensor) -> None:
    config = tiny()
    model = make(config).eval()
    rows = analyse(model, source_of(images), batch_size=2, precision="float64").rows
    wide = make(config).eval().double()
    with torch.no_grad():
        z = wide.encoder.embed(images.double())
        for index, layer in enumerate(wide.encoder.layers):
            h = layer.compress(z)
            codes = layer.sparsify(h)
            for point, tokens in (("input", z), ("compress", h), ("sparsify", codes)):
                x = layer.norm1(tokens)
                rates = {
                    "coding_rate": measures.coding_rate(x),
                    "subspace_coding_rate": measures.subspace_coding_rate(layer.mssa.project(x)),
                    "effective_rank": measures.effective_rank(layer.mssa.project(x)).mean(dim=1),
                }
                for measure, expected in rates.items():
                    row = value(rows, measure, index, point, "encoder")
                    assert row.mean == pytest.approx(float(expected.mean()), rel=1e-9)
                    assert row.std == pytest.approx(float(expected.std()), rel=1e-6)
            x = layer.norm1(z)
            lengths = layer.mssa.project(x).square().sum(-1).mean((1, 2))
            downhill = torch.stack(
                [
                    -measures.compression_gradient(
                        one[None],
                        subspace_bases(layer.mssa),
                        eps_squared=0.01 * float(length),
                    )[0]
                    for one, length in zip(x, lengths, strict=True)
                ]
            )
            cosines = measures.cosine(layer.mssa(x), downhill)
            row = value(rows, "mssa_gradient_cosine", index, "compress", "encoder")
            assert row.mean == pytest.approx(float(cosines.mean()), abs=1e-9)
            ratio = layer.mssa(x).flatten(1).norm(dim=1) / downhill.flatten(1).norm(dim=1)
            row = value(rows, "mssa_gradient_ratio", index, "compress", "encoder")
            assert row.mean == pytest.approx(float(ratio.mean()), rel=1e-6)
            x = layer.norm2(h)
            D = layer.ista.dictionary
            before = measures.lasso_objective(x, x, D, config.sparsity)
            after = measures.lasso_objective(codes, x, D, config.sparsity)
            row = value(rows, "lasso_fall", index, "sparsify", "encoder")
            assert row.mean == pytest.approx(float(((before - after) / before).mean()))
            used = int((codes != 0).flatten(0, 1).any(dim=0).sum())
            assert value(rows, "atoms_used", index, "sparsify", "encoder").mean == used
            z = codes


def test_overcomplete_codes_are_measured_from_where_their_steps_start(images: Tensor) -> None:
    """The objective begins at a = 0 and is that of the codes, which are not the next tokens."""
    config = tiny(depth=1, decoder_depth=1, overcomplete=3, sparsity=0.2)
    model = make(config).eval()
    rows = analyse(model, source_of(images), precision="float64").rows
    wide = make(config).eval().double()
    layer = next(iter(wide.encoder.layers))
    with torch.no_grad():
        x = layer.norm2(layer.compress(wide.encoder.embed(images.double())))
        D, codes = (
            layer.ista.dictionary.detach(),
            torch.zeros(len(x), x.shape[1], 3 * config.dim).double(),
        )
        for _ in range(2):
            codes = codes + config.step_size * ((x - codes @ D.mT) @ D - config.sparsity)
            codes = codes.clamp(min=0)
        fit = (x - codes @ D.mT).square().sum(dim=-1) / 2
        end = (fit + config.sparsity * codes.sum(dim=-1)).mean(dim=1)
        start = x.square().sum(dim=-1).mean(dim=1) / 2
    expected = {
        "lasso_start": start,
        "lasso_start_nonnegative": start,
        "lasso_end": end,
        "lasso_fall": (start - end) / start,
        "zero_fraction": (codes == 0).double().mean(dim=(1, 2)),
        "ista_residual": (x - codes @ D.mT).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1),
        "atoms_used": (codes != 0).flatten(0, 1).any(dim=0).sum().double(),
    }
    for measure, wanted in expected.items():
        row = value(rows, measure, 0, "sparsify", "encoder")
        assert row.mean == pytest.approx(float(wanted.mean()), rel=1e-9), measure
    assert value(rows, "lasso_start", 0, "sparsify", "encoder").tensor.endswith(
        "a = 0 (where ISTA starts)"
    )
    assert "a exactly 0" in value(rows, "zero_fraction", 0, "sparsify", "encoder").tensor
    # The decoder's synthesis is such a step as well.
    synthesis = next(iter(wide.decoder))
    with torch.no_grad():
        entered = synthesis.norm1(wide.encode(images.double()))
        assert isinstance(synthesis.synthesis, OvercompleteISTA)
        zeros = (synthesis.synthesis.codes(entered) == 0).double().mean()
    row = value(rows, "zero_fraction", 0, "expand", "decoder")
    assert row.mean == pytest.approx(float(zeros))
    assert value(rows, "lasso_start", 0, "expand", "decoder").tensor.startswith("1/2 |x - D a|^2")
    assert value(rows, "ista_step_bound", 0, "weights", "decoder").mean > 0
    assert not any(row.measure == "mirror_dictionary_cosine" for row in rows)  # atoms have no order


def test_a_decoder_that_undoes_nothing_and_one_that_copies(images: Tensor) -> None:
    """With A = I and MSSA switched off a decoder layer only normalises its tokens."""
    config = tiny(depth=1, decoder_depth=1, decoder_num_heads=2)
    model = make(config).eval()
    with torch.no_grad():
        layer = next(iter(model.decoder))
        layer.dictionary.copy_(torch.eye(config.dim))
        layer.norm1.weight.fill_(1)
        layer.norm1.bias.zero_()
        model.encoder.norm.weight.fill_(1)
        model.encoder.norm.bias.zero_()
        assert layer.mssa.output is not None
        layer.mssa.output.weight.zero_()
        layer.mssa.output.bias.zero_()
    rows = analyse(model, source_of(images), precision="float64").rows
    entering = value(rows, "mirror_cka", 0, "input", "decoder")
    assert entering.tensor == "z, and z' of encoder layer 0"
    expanded = value(rows, "mirror_error", 0, "expand", "decoder").mean
    wide = make(config).eval().double()
    with torch.no_grad():
        z = wide.encoder.embed(images.double())
        first = next(iter(wide.encoder.layers))
        h = first.compress(z)
        codes = first.sparsify(h)
        plain = torch.nn.functional.layer_norm(codes, (config.dim,), eps=1e-6)
        y = torch.nn.functional.layer_norm(plain, (config.dim,), eps=1e-5)
        assert expanded == pytest.approx(float((y - h).norm() / h.norm()), rel=1e-6)
    out = value(rows, "mirror_error", 0, "decompress", "decoder")
    assert out.mean == pytest.approx(float((y - z).norm() / z.norm()), rel=1e-6)
    assert value(rows, "mirror_cka", 0, "expand", "decoder").mean < 1


def test_one_image_has_no_spread_and_a_zero_image_no_nan(images: Tensor) -> None:
    rows = analyse(make(tiny()), source_of(torch.zeros_like(images[:1]), [0])).rows
    assert all(row.std is None for row in rows)
    assert all(math.isfinite(row.mean) for row in rows)


def test_class_rows_need_labels(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(tiny())
    labelled = analyse(model, source_of(images)).rows
    assert len([row for row in labelled if row.measure == "class_rate_reduction"]) == 3
    # With every image of one class there is nothing to reduce, however labels are dealt out.
    single = analyse(model, source_of(images, [0] * 5)).rows
    for measure in ("class_rate_reduction", "class_rate_reduction_dealt"):
        assert value(single, measure, 2, "features", "encoder").mean == pytest.approx(0, abs=1e-9)
    blind = analyse(model, source_of(images, [-1] * 5)).rows
    assert not [row for row in blind if row.measure == "class_rate_reduction"]
    monkeypatch.setattr(classes, "CLASS_MEMORY", 6000)
    final = analyse(model, source_of(images)).rows
    assert [r.point for r in final if r.measure == "class_rate_reduction"] == ["features"]


def test_too_many_classes_are_told(
    images: Tensor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(classes, "CLASS_MEMORY", 100)
    with caplog.at_level(logging.WARNING):
        rows = analyse(make(tiny()), source_of(images)).rows
    assert "no layer" in caplog.text
    assert not [row for row in rows if row.measure == "class_rate_reduction"]


def test_a_classifier_has_encoder_rows_only(images: Tensor) -> None:
    model = make(tiny())
    classifier = CrateClassifier.from_pretrained(model, num_classes=2)
    analysis = analyse(classifier, source_of(images))
    assert {row.side for row in analysis.rows} == {"encoder"}
    whole = analyse(model, source_of(images)).rows
    mine = [row for row in whole if row.side == "encoder"]
    assert [(row.measure, row.mean) for row in mine] == [
        (row.measure, row.mean) for row in analysis.rows
    ]
    assert set(analysis.overlaps) == {"encoder"}


def test_bad_calls_are_refused(images: Tensor) -> None:
    model, source = make(tiny()), source_of(images)
    with pytest.raises(ValueError, match="precision must be"):
        analyse(model, source, precision=cast("Precision", "float16"))
    with pytest.raises(ValueError, match="eps_squared must be"):
        analyse(model, source, eps_squared=0.0)
    with pytest.raises(ValueError, match="batch_size must be"):
        analyse(model, source, batch_size=0)
    with torch.no_grad():
        model.encoder.patch_embed.linear.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="not finite"):
        analyse(model, source)


def test_the_tables_files_say_the_same(images: Tensor, tmp_path: Path) -> None:
    analysis = analyse(make(tiny()), source_of(images))
    write_table(analysis.rows, {"answer": 42}, tmp_path)
    rows, facts = read_table(tmp_path)
    assert rows == analysis.rows
    assert facts == {"answer": 42}
    assert models_of(rows) == ["model"]
    with (tmp_path / "layers.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(rows)
    assert np.allclose([float(line["mean"]) for line in table], [row.mean for row in rows])
    assert all(line["tensor"] and line["precision"] == "float32" for line in table)
    layers = curve(rows, "zero_fraction", model="model", side="encoder", point="sparsify")
    assert [row.layer for row in layers] == [0, 1]


def test_damaged_and_missing_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no analysis"):
        read_table(tmp_path)
    (tmp_path / "layers.json").write_text('{"rows": [{"model": 1}], "facts": {}}')
    with pytest.raises(ValueError, match="no analysis of ours"):
        read_table(tmp_path)


def test_the_control_tells_classes_from_chance() -> None:
    """Two classes of unlike images; once labels are dealt out anew, little is left of Delta R."""
    config = tiny()
    base = images_for(config, batch=2).sigmoid()
    noise = 0.02 * images_for(config, batch=60, seed=5)
    images = (base.repeat(30, 1, 1, 1) + noise).clamp(0, 1)
    rows = analyse(make(config), source_of(images)).rows
    true = value(rows, "class_rate_reduction", 2, "features", "encoder").mean
    dealt = value(rows, "class_rate_reduction_dealt", 2, "features", "encoder").mean
    assert dealt < 0.2 * true


def test_the_control_is_measured_on_the_images_that_have_labels(images: Tensor) -> None:
    """Unreadable and unlabelled images take no label out of the control's hand."""

    class Torn(ImageSource):
        """Twelve images, of which two have a label and one of these cannot be read."""

        def __init__(self) -> None:
            self.address, self.split, self.class_names = "torn", None, ("a", "b")

        def __len__(self) -> int:
            return 12

        def label(self, index: int) -> int | None:
            return {4: 0, 9: 1}.get(index)

        def name(self, index: int) -> str:
            return str(index)

        def load(self, index: int) -> Sample:
            if index == 9:
                raise UnreadableImage("9", "torn")
            return Sample(image=images[index % 5], label=self.label(index), name=str(index))

        def facts(self, index: int) -> ImageFacts:
            raise AssertionError("an analysis decodes images, it does not ask for headers")

        def _identity(self, index: int) -> tuple[str | int | None, ...]:
            return (index,)

    rows = analyse(make(tiny()), Torn()).rows
    for measure in ("class_rate_reduction", "class_rate_reduction_dealt"):
        row = value(rows, measure, 2, "features", "encoder")
        assert row.images == 1
        assert row.mean == pytest.approx(0, abs=1e-9)
