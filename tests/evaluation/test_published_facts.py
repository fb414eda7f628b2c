"""What the loss tells of published checkpoints, on models trained here with known facts."""

import logging
import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from model_cases import GOLDEN_FACTS, golden_under, make, tiny
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from crate_mae import CrateMAE, load_model
from crate_mae.batches.transforms import prepare
from crate_mae.cli import main
from crate_mae.common.randomness import keyed_generator
from crate_mae.evaluation.published_facts import (
    MASK_RATIO,
    SPARSITIES,
    Trial,
    measure_published_facts,
)
from crate_mae.models.config import IMAGENET_MEAN, IMAGENET_STD, ModelConfig, Preprocess
from crate_mae.models.masks import draw_mask
from crate_mae.sources.arrays import ArraySource
from crate_mae.sources.images import Sample
from crate_mae.sources.photographs import photograph_squares
from crate_mae.weights.published import PublishedFacts, from_reference, to_reference

# One patch of four is seen: such models learn the squares by heart in the fewest steps.
CONFIG = ModelConfig(
    image_size=8, patch_size=4, dim=32, depth=2, num_heads=4, decoder_depth=2, decoder_num_heads=4
)
STEPS = 400

# Every value of every fact beside every value of the others, in half of all combinations. Two
# numbers of heads in PRESETS divide a width of 32: 4 and 16.
KNOWN = [
    PublishedFacts(sparsity=5.0, num_heads=4, norm_pix_loss=False),
    PublishedFacts(sparsity=5.0, num_heads=16, norm_pix_loss=True),
    PublishedFacts(sparsity=0.5, num_heads=4, norm_pix_loss=True),
    PublishedFacts(sparsity=0.5, num_heads=16, norm_pix_loss=False),
]
# With so short a step lambda changes nothing: eta lambda is 0.005 or 0.0005.
SHORT_STEP = PublishedFacts(num_heads=4, sparsity=0.5, norm_pix_loss=False, step_size=0.001)


def squares(model: CrateMAE) -> Tensor:
    source = photograph_squares()
    return prepare([source.load(index).image for index in range(len(source))], model.preprocess)


@cache
def trained(facts: PublishedFacts) -> dict[str, Tensor]:
    """The published state of a small model trained on the squares that it will be measured on."""
    torch.manual_seed(0)
    model = CrateMAE(
        replace(
            CONFIG,
            num_heads=facts.num_heads,
            decoder_num_heads=facts.num_heads,
            step_size=facts.step_size,
            sparsity=facts.sparsity,
            norm_pix_loss=facts.norm_pix_loss,
        )
    )
    model.preprocess = Preprocess(size=CONFIG.image_hw, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    images = squares(model).repeat(2, 1, 1, 1)
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.05, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 4e-3, total_steps=STEPS, pct_start=0.1, cycle_momentum=False
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        optimiser.zero_grad()
        model(images, generator=generator).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return to_reference(model)


def untrained() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return to_reference(CrateMAE(CONFIG))


Write = Callable[[dict[str, Tensor]], Path]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Write:
    """Write a state as a published file: checkpoint(state)."""

    def write(state: dict[str, Tensor]) -> Path:
        save_file(state, tmp_path / "checkpoint.safetensors")
        return tmp_path / "checkpoint.safetensors"

    return write


# --- what the losses tell ---------------------------------------------------------------------


@pytest.mark.parametrize("facts", KNOWN, ids=str)
def test_the_facts_of_trained_models_are_told(facts: PublishedFacts) -> None:
    heard: list[tuple[int, int]] = []
    measured = measure_published_facts(
        trained(facts), progress=lambda done, total: heard.append((done, total))
    )
    assert measured.unclear == ()
    assert measured.facts == facts
    assert measured.tried == ("sparsity", "num_heads", "norm_pix_loss")
    combinations = {
        (trial.facts.sparsity, trial.facts.num_heads, trial.facts.norm_pix_loss)
        for trial in measured.trials
    }
    assert len(measured.trials) == len(combinations) == 8
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_what_is_given_is_not_tried() -> None:
    facts = KNOWN[0]
    state = trained(facts)
    one = measure_published_facts(state, num_heads=4, norm_pix_loss=False)
    assert [trial.facts.sparsity for trial in one.trials] == list(SPARSITIES)
    assert one.facts == facts
    # Even what is wrong: the user has the last word.
    other = measure_published_facts(state, sparsity=0.3, decoder_num_heads=8, step_size=0.2)
    for trial in other.trials:
        assert trial.facts.sparsity == 0.3
        assert trial.facts.decoder_num_heads == 8
        assert trial.facts.step_size == 0.2
    nothing = measure_published_facts(state, sparsity=5.0, num_heads=4, norm_pix_loss=False)
    assert nothing.tried == ()
    assert nothing.facts == facts


def test_a_fact_that_changes_nothing_is_unclear_and_the_others_are_told() -> None:
    state = trained(SHORT_STEP)
    measured = measure_published_facts(state, step_size=SHORT_STEP.step_size)
    assert measured.unclear == ("sparsity",)
    assert measured.best.facts.num_heads == 4
    assert not measured.best.facts.norm_pix_loss
    with pytest.raises(ValueError, match=r"too close to each other: give sparsity \(--sparsity\)"):
        _ = measured.facts
    told = measure_published_facts(state, step_size=SHORT_STEP.step_size, sparsity=0.5)
    assert told.facts == SHORT_STEP


@pytest.mark.parametrize("state", [untrained, lambda: golden_under("state.")])
def test_a_model_that_predicts_nothing_tells_nothing(
    state: Callable[[], dict[str, Tensor]],
) -> None:
    measured = measure_published_facts(state())
    assert measured.unclear == ("sparsity", "num_heads", "norm_pix_loss")
    with pytest.raises(ValueError, match="much better than one colour") as error:
        _ = measured.facts
    for option in ("--sparsity", "--num-heads", "--norm-pix-loss or --no-norm-pix-loss"):
        assert option in str(error.value)


def test_losses_that_are_not_finite_tell_nothing() -> None:
    state = untrained()
    state["decoder_pred.weight"] *= 1e30
    measured = measure_published_facts(state)
    assert measured.best.share == math.inf
    assert len(measured.unclear) == 3
    assert "inf" in measured.text()


# --- the numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", [False, True])
def test_losses_are_those_of_the_model_on_fixed_masks(normalise: bool) -> None:
    """Those that the model itself tells, and one colour by its definition."""
    facts = replace(KNOWN[3], norm_pix_loss=normalise)
    state = trained(KNOWN[3])
    first, second = (measure_published_facts(state, num_heads=16) for _ in range(2))
    assert first == second
    (trial,) = [trial for trial in first.trials if trial.facts == facts]
    model = from_reference(state, facts).eval()
    images = squares(model)
    assert len(images) == len(trial.losses) == 12
    masks = torch.cat(
        [
            draw_mask("random", (2, 2), MASK_RATIO, keyed_generator(0, index))
            for index in range(len(images))
        ]
    )
    with torch.no_grad():
        assert trial.loss == pytest.approx(float(model(images, masks).loss), rel=1e-5)
        for index in (0, 7):
            alone = model(images[[index]], masks[[index]]).loss
            assert trial.losses[index] == pytest.approx(float(alone), rel=1e-5)
    pixels = model.target(images)[masks].double().reshape(-1, 3)
    spread = pixels.var(dim=0, correction=0).mean()
    assert trial.one_colour == pytest.approx(float(spread), rel=1e-6)
    assert trial.share == trial.loss / trial.one_colour


@pytest.mark.parametrize(
    ("losses", "target", "clear"),
    [
        ((1.2, 1.3, 1.25, 1.22), False, True),
        ((1.04, 1.04, 1.04, 1.04), False, False),  # no lead
        ((0.9, 0.9, 0.9, 2.5), False, False),  # the lead of one image
        ((0.9, 0.9, 0.9, 2.5), True, True),  # in other units: the lead alone counts
        ((1.0, 1.0, 1.0, 1.0), True, False),
        ((math.inf, 1.0, 1.0, 1.0), False, True),
        ((0.0, 1.5, 1.5, 1.5), False, False),  # one image without any error
        ((math.nan, 1.0, 1.0, 1.0), True, True),
    ],
    ids=str,
)
def test_what_counts_as_clear(losses: tuple[float, ...], target: bool, clear: bool) -> None:
    best = Trial(facts=GOLDEN_FACTS, losses=(1.0, 1.0, 1.0, 1.0), one_colour=2.0)
    facts = replace(GOLDEN_FACTS, sparsity=5.0, norm_pix_loss=target)
    assert best.clearly_below(Trial(facts=facts, losses=losses, one_colour=2.0)) == clear


@pytest.mark.parametrize(
    ("dim", "heads"),
    [(20, [4]), (24, [4, 6, 12]), (48, [4, 6, 12, 16]), (128, [4, 16]), (384, [6, 4, 12, 16])],
)
def test_heads_are_tried_as_in_presets_those_of_the_same_width_first(
    dim: int, heads: list[int]
) -> None:
    state = to_reference(make(tiny(dim=dim, num_heads=4, decoder_num_heads=4)))
    trials = measure_published_facts(state, sparsity=0.5, norm_pix_loss=False).trials
    assert [trial.facts.num_heads for trial in trials] == heads


# --- images -----------------------------------------------------------------------------------


def test_images_of_ones_own() -> None:
    facts = KNOWN[0]
    pixels = np.stack([photograph_squares().load(index).image.numpy() for index in range(12)])
    own = ArraySource("npy:own", np.concatenate([pixels[::-1], pixels]), prefix="own")
    measured = measure_published_facts(trained(facts), own)
    assert measured.facts == facts
    assert {len(trial.losses) for trial in measured.trials} == {24}
    assert "masked loss of 24 images, 75% of the patches removed" in measured.text()


def test_grey_models_see_grey_photographs() -> None:
    measured = measure_published_facts(to_reference(make(tiny(channels=1))), num_heads=3)
    assert all(math.isfinite(trial.loss) for trial in measured.trials)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((3, 8, 8, 3), np.uint8), "3 images are too few .* give 4 or more"),
        (np.full((4, 8, 8, 3), 77, np.uint8), "the images have one colour"),
    ],
    ids=["few", "one colour"],
)
def test_images_that_tell_nothing_are_refused(pixels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_published_facts(to_reference(make(tiny())), ArraySource("npy:x", pixels, prefix=""))


def test_there_are_no_photographs_of_five_channels() -> None:
    state = to_reference(make(tiny(channels=5)))
    with pytest.raises(ValueError, match=r"no photographs of 5 channels.*--images"):
        measure_published_facts(state)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 12, 5), np.uint8)
    measured = measure_published_facts(state, ArraySource("npy:five", pixels, prefix="five"))
    assert len(measured.trials[0].losses) == 4


def test_facts_that_do_not_fit_are_refused_before_images_are_read() -> None:
    class Unread(ArraySource):
        def load(self, index: int) -> Sample:
            raise AssertionError("was read")

    source = Unread("npy:x", np.zeros((4, 8, 8, 3), np.uint8), prefix="")
    state = to_reference(make(tiny()))
    for options, message in (
        ({"num_heads": 5}, "num_heads 5 does not divide dim 12"),
        ({"decoder_num_heads": 5}, "decoder_num_heads 5 does not divide dim 12"),
        ({"sparsity": -1.0}, "sparsity must be a finite number of at least 0"),
        ({"step_size": math.nan}, "step_size must be a finite number of at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            measure_published_facts(state, source, **options)


# --- from the command line --------------------------------------------------------------------


def test_convert_measures_what_is_not_given_and_prints_it(
    checkpoint: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = KNOWN[1]
    file = checkpoint(trained(facts))
    assert main(["convert", str(file), "--out", str(tmp_path / "weights")]) == 0
    config = load_model(tmp_path / "weights").config
    assert (config.sparsity, config.num_heads, config.decoder_num_heads) == (5.0, 16, 16)
    assert config.norm_pix_loss
    told = capsys.readouterr().out
    measured = measure_published_facts(file)
    assert told.startswith(measured.text() + "\n")
    assert "masked loss of 12 squares of two photographs, 75% of the patches removed:" in told
    for weight in ("5", "0.5"):
        (row,) = re.findall(rf"^ +16 +{re.escape(weight)} +(\S+) +(\S+)$", told, re.MULTILINE)
        losses = [t.loss for t in measured.trials if _key(t) == (16, float(weight))]
        assert [float(loss) for loss in row] == pytest.approx(losses, abs=5e-5)
    best, rivals = measured.best, measured.rivals
    other = rivals["sparsity"]
    assert other is not None
    assert (
        f"lambda 5: with 5 the loss is {best.share:.1%} of that of one colour, with 0.5 it is"
        f" {other.share:.1%} at best"
    ) in told
    assert "heads 16: with 16 the loss is" in told
    assert "targets normalised patches: with normalised patches the loss is" in told
    for line in ("heads       16 + 16", "lambda      5, eta 0.1", "targets     normalised patches"):
        assert line in told


def _key(trial: Trial) -> tuple[int, float]:
    return trial.facts.num_heads, trial.facts.sparsity


def test_convert_asks_where_it_cannot_tell(
    checkpoint: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["convert", str(checkpoint(trained(SHORT_STEP))), "--out", str(tmp_path / "weights")]
    words += ["--step-size", "0.001", "--num-heads", "4"]
    assert main(words) == 1
    shown = capsys.readouterr()
    # Which of the two is ahead by a hair is a matter of how a processor rounds.
    assert re.search(r"lambda unclear: with (0\.5|5) the loss is", shown.out)
    assert "give sparsity (--sparsity)" in shown.err
    assert not (tmp_path / "weights").exists()
    assert main([*words, "--sparsity", "0.5"]) == 0
    config = load_model(tmp_path / "weights").config
    assert (config.sparsity, config.step_size, config.norm_pix_loss) == (0.5, 0.001, False)


def test_convert_measures_on_images_that_are_named(
    checkpoint: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "pictures").mkdir()
    source = photograph_squares()
    for index in range(len(source)):
        pixels = source.load(index).image.permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{index:02d}.png")
    file = checkpoint(trained(KNOWN[0]))
    (tmp_path / "pictures" / "00.png").write_bytes(b"no image")
    words = ["convert", str(file), "--images", str(tmp_path / "pictures"), "--limit", "11"]
    with caplog.at_level(logging.WARNING):
        assert main([*words, "--out", str(tmp_path / "weights"), "--num-heads", "4"]) == 0
    assert "00.png: " in caplog.text
    assert "masked loss of 10 images, 75% of the patches removed" in capsys.readouterr().out
    assert load_model(tmp_path / "weights").config.sparsity == 5.0


def test_the_code_of_the_model_page_does_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "model.md").read_text(encoding="utf-8")
    section = page[page.index("## Published checkpoints") :]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    torch.save({"model": trained(KNOWN[3])}, "crate_mae_base.pth")
    exec(code, {})
    assert "lambda 0.5: with 0.5 the loss is" in capsys.readouterr().out
    config = load_model("crate-mae-base").config
    assert (config.sparsity, config.num_heads, config.norm_pix_loss) == (0.5, 16, False)


def test_convert_measures_nothing_when_all_is_given(
    checkpoint: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["convert", str(checkpoint(untrained())), "--out", str(tmp_path / "weights")]
    words += ["--sparsity", "0.5", "--num-heads", "4", "--no-norm-pix-loss"]
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--images", str(tmp_path)])
    assert "leave out --images" in capsys.readouterr().err
    assert main(words) == 0
    assert "masked loss" not in capsys.readouterr().out


def test_convert_checks_places_before_it_measures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    missing = str(tmp_path / "missing.pth")
    assert main(["convert", missing, "--out", str(tmp_path / "full")]) == 1
    assert "is not overwritten; name a new folder" in capsys.readouterr().err
    assert main(["convert", missing, "--out", str(tmp_path / "x"), "--images", "nowhere"]) == 1
    assert "no image, folder or known address at nowhere" in capsys.readouterr().err
    for more in (["--sparsity", "0.5"], ["--no-norm-pix-loss"], ["--images", "digits"]):
        with pytest.raises(SystemExit, match="2"):
            main(["convert", missing, "--to-reference", str(tmp_path / "x.pth"), *more])
        assert "our weights hold all of them" in capsys.readouterr().err
