"""The coding-rate term in training: of the whole step, however the step is split."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from data_cases import MODEL
from torch import Tensor
from training_runs import final_state, records, small_config, two_processes, write_recipe

from crate_mae.batches.config import DataConfig
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.backbone import MaskedAutoencoder
from crate_mae.models.config import Preprocess
from crate_mae.models.masks import draw_mask
from crate_mae.training.config import OptimConfig, TrainerConfig
from crate_mae.training.objectives import ObjectiveConfig, SimDINOConfig
from crate_mae.training.pretrain import pretrain
from crate_mae.training.rate_term import CodingRate, loss_in_words
from crate_mae.vitmae.model import build_vitmae, vitmae_config
from crate_mae.whitebox.measures import coding_rate

RATE = ObjectiveConfig(gamma=0.5)
OPTIM = OptimConfig(epochs=2, batch_size=32, base_lr=1e-3, warmup_epochs=1)


def batch_of(model: Any, count: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(count)
    images = torch.randn(count, 1, 8, 8, generator=generator)
    mask = draw_mask("random", model.config.grid, 0.75, generator, batch=count)
    return {"images": images, "mask": mask}


def models() -> list[MaskedAutoencoder]:
    torch.manual_seed(0)
    visible = replace(MODEL, mask_tokens="decoder")
    vitmae = build_vitmae(vitmae_config(MODEL), preprocess=Preprocess.identity(MODEL), seed=0)
    return [CrateMAE(MODEL), CrateMAE(visible), vitmae]


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("layer", [None, 0, 1])
@pytest.mark.parametrize("features", ["pooled", "class_token", "tokens"])
def test_the_term_is_the_measured_rate_of_visible_patches(
    index: int, layer: int | None, features: Any
) -> None:
    model = models()[index]
    batch = batch_of(model)
    objective = ObjectiveConfig(gamma=0.3, features=features, layer=layer, float64=True)
    visible_only = index > 0
    kept = int((~batch["mask"][0]).sum())
    rate = CodingRate(objective, kept=kept, visible_only=visible_only, accumulate=1)
    latent = model(batch["images"], mask=batch["mask"], layer=layer).latent
    term = rate(batch, latent, lambda _: latent)

    # By hand, image by image, from the tokens that the model's own walk gives.
    rows = []
    for i in range(6):
        patches = latent[i, 1:] if visible_only else latent[i, 1:][~batch["mask"][i]]
        assert len(patches) == kept
        rows.append(
            {"pooled": patches.mean(0), "class_token": latent[i, 0], "tokens": patches}[features]
        )
    sets = torch.stack(rows) if features == "tokens" else torch.stack(rows)[None]
    expected = float(coding_rate(sets.detach(), eps_squared=0.25).mean())
    assert float(term.rate) == pytest.approx(expected, rel=1e-5)
    assert float(term.loss.detach()) == pytest.approx(0.3 * (1 - expected / term.largest), rel=1e-5)


@pytest.mark.parametrize("visible_only", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_means_of_half_precision_are_not_rounded_to_it(
    visible_only: bool, dtype: torch.dtype
) -> None:
    """Of 301 visible patches, a number that bfloat16 does not have."""
    latent = torch.randn(3, 402, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    mask = torch.zeros(3, 401, dtype=torch.bool)
    if visible_only:
        latent = latent[:, :302]
    else:
        mask[:, 301:] = True
    rate = CodingRate(ObjectiveConfig(gamma=1), kept=301, visible_only=visible_only, accumulate=1)
    found = rate.features(latent, mask)
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found.double(), latent[:, 1:302].double().mean(dim=1), atol=1e-7, rtol=0
    )


@pytest.mark.parametrize("index", [0, 1, 2])
def test_latent_tokens_are_those_of_the_layer_asked_for(index: int) -> None:
    model = models()[index]
    batch = batch_of(model)
    output = model(batch["images"], mask=batch["mask"])
    again = model.encode_masked(batch["images"], batch["mask"])
    torch.testing.assert_close(output.latent, again)
    first = model.encode_masked(batch["images"], batch["mask"], layer=0)
    last = model.encode_masked(batch["images"], batch["mask"], layer=model.config.depth)
    assert not torch.allclose(first, last)
    if isinstance(model, CrateMAE):
        torch.testing.assert_close(first, model.embed_masked(batch["images"], batch["mask"]))
        torch.testing.assert_close(model.encoder.norm(last), output.latent)


@pytest.mark.parametrize("layer", [-1, 99])
def test_a_layer_that_is_not_there_is_refused(layer: int) -> None:
    for model in models()[:2]:
        batch = batch_of(model)
        with pytest.raises(ValueError, match="layer must be from 0 to"):
            model.encode_masked(batch["images"], batch["mask"], layer=layer)
        with pytest.raises(ValueError, match="layer must be from 0 to"):
            model(batch["images"], mask=batch["mask"], layer=layer)


def gradient(parts: int, objective: ObjectiveConfig) -> list[Tensor]:
    """Gradients of one step whose 8 images come in so many batches, averaged as training does."""
    torch.manual_seed(3)
    model = CrateMAE(MODEL).double()
    batch = batch_of(model, 8)
    batch["images"] = batch["images"].double()
    pieces: list[dict[str, Any]] = [
        {key: value.chunk(parts)[i] for key, value in batch.items()} for i in range(parts)
    ]
    if parts > 1:
        pieces[0] = {**pieces[0], "whole_step": list(pieces)}
    rate = CodingRate(objective, kept=4, visible_only=False, accumulate=parts)

    def encode(piece: Any) -> Tensor:
        return model.encode_masked(piece["images"], piece["mask"])

    for piece in pieces:
        output = model(piece["images"], mask=piece["mask"])
        loss = output.loss + rate(piece, output.latent, encode).loss
        torch.autograd.backward(loss / parts)
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulation_gives_the_gradient_of_the_whole_step(parts: int) -> None:
    exact = replace(RATE, float64=True)
    for found, expected in zip(gradient(parts, exact), gradient(1, exact), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)


def test_the_rate_of_each_batch_is_another_objective() -> None:
    """What the user may choose, and why it is not the default."""
    parts = replace(RATE, over="batch")
    same = [
        torch.allclose(found, expected, atol=1e-6)
        for found, expected in zip(gradient(4, parts), gradient(1, parts), strict=True)
    ]
    assert not all(same)


def compare(one: Path, two: Path) -> None:
    first, second = final_state(one), final_state(two)
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, atol=1e-4, rtol=1e-4)
    for name in ("train/loss", "train/masked_loss", "train/coding_rate", "train/largest_rate"):
        values = [
            torch.tensor([record[name] for record in records(run) if name in record])
            for run in (one, two)
        ]
        assert len(values[0]) == 10
        torch.testing.assert_close(values[0], values[1], atol=2e-4, rtol=2e-4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rate") / "whole"
    pretrain(small_config(optim=OPTIM, objective=RATE), folder)
    return folder


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_train_what_one_trains(whole: Path, tmp_path: Path, accumulate: int) -> None:
    """2 devices x 16 images, and accumulating as well: x 2 batches of 8."""
    config = small_config(
        optim=OPTIM,
        objective=RATE,
        trainer=TrainerConfig(accelerator="cpu", devices=2, strategy="ddp", accumulate=accumulate),
    )
    recipe = write_recipe(config, tmp_path / "two.yaml")
    output = two_processes("pretrain", "--config", recipe, "--out", tmp_path / "two")
    assert f"2 devices x {accumulate} accumulated x {16 // accumulate}" in output
    compare(whole, tmp_path / "two")


def test_accumulation_trains_what_one_batch_trains(whole: Path, tmp_path: Path) -> None:
    trainer = TrainerConfig(accelerator="cpu", devices=1, accumulate=4)
    pretrain(small_config(optim=OPTIM, objective=RATE, trainer=trainer), tmp_path / "four")
    compare(whole, tmp_path / "four")


def test_the_log_says_what_is_minimised(whole: Path) -> None:
    said = "loss: masked loss + 0.5 x (1 - R / max. R); R is of mean visible patch tokens over 32"
    assert said in (whole / "log.txt").read_text()


def test_the_log_says_when_the_rate_depends_on_how_a_step_is_split(tmp_path: Path) -> None:
    config = small_config(
        optim=replace(OPTIM, epochs=1, warmup_epochs=0),
        objective=replace(RATE, over="batch"),
        trainer=TrainerConfig(accelerator="cpu", devices=1, accumulate=4),
    )
    pretrain(config, tmp_path / "run")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "over 8 images, a part of the 32 of a step, so that the result depends on how" in log


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (ObjectiveConfig(), "masked loss"),
        (
            ObjectiveConfig(features="tokens", layer=1, over="batch", eps_squared=1.0),
            "masked loss alone: no effect of objective.features, objective.layer, objective.over"
            " while objective.gamma is 0",
        ),
        (replace(RATE, over="batch"), "patch tokens over 32 images"),
        (replace(RATE, features="class_token"), "R is of class tokens over 32 images"),
        (
            replace(RATE, features="tokens", over="batch"),
            "R is of visible patch tokens of each image by themselves",
        ),
        (
            RATE,
            "masked loss + 0.5 x (1 - R / max. R); R is of mean visible patch tokens over 32"
            " images",
        ),
    ],
)
def test_the_loss_in_words(objective: ObjectiveConfig, words: str) -> None:
    said = loss_in_words(small_config(optim=OPTIM, objective=objective), 32)
    assert said.endswith(words)
    assert said.startswith("masked loss")


@pytest.mark.parametrize(("whole", "images"), [(True, "32 images"), (False, "16 images, a part")])
def test_the_loss_of_simdino_in_words(whole: bool, images: str) -> None:
    config = small_config(
        optim=OPTIM,
        data=DataConfig(source="digits"),
        method="simdino",
        simdino=SimDINOConfig(reduce_cov=whole, coefficient=2.0),
    )
    expected = "-2 x compression - expansion; R is of class tokens through the head over " + images
    assert loss_in_words(config, 16).startswith(expected)


def test_a_stopped_run_goes_on_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    config = small_config(optim=OPTIM, objective=RATE)
    pretrain(config, tmp_path / "run", stop_after=3)
    pretrain(config, tmp_path / "run", resume=True)
    first, second = final_state(whole), final_state(tmp_path / "run")
    assert all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize("index", [0, 1, 2])
def test_steps_against_the_term_raise_the_rate(index: int) -> None:
    model = models()[index]
    batch = batch_of(model, 16)
    rate = CodingRate(RATE, kept=4, visible_only=index > 0, accumulate=1)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=3e-3)
    shares = []
    for _ in range(20):
        latent = model.encode_masked(batch["images"], batch["mask"])
        term = rate(batch, latent, lambda _: torch.empty(0))
        optimizer.zero_grad()
        torch.autograd.backward(term.loss)
        optimizer.step()
        shares.append(float(term.rate) / term.largest)
    assert shares[-1] > 1.3 * shares[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": -0.1}, "objective.gamma must be at least 0, not -0.1"),
        ({"gamma": float("nan")}, "objective.gamma must be at least 0"),
        ({"eps_squared": 0.0}, "objective.eps_squared must be from 0.001 to 1000, not 0.0"),
        ({"features": "mean"}, "objective.features must be one of pooled, class_token, tokens"),
        ({"over": "device"}, "objective.over must be one of step, batch"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**changes)


def test_settings_that_do_not_fit_the_model_are_refused() -> None:
    with pytest.raises(ValueError, match=r"objective.layer must be from 0 to model.depth"):
        small_config(objective=replace(RATE, layer=99))
    config = small_config(objective=replace(RATE, features="tokens"))
    with pytest.raises(ValueError, match=r"objective.features=tokens cannot batch"):
        replace(config, masking=replace(config.masking, ratio_max=0.9))
    with pytest.raises(ValueError, match="class tokens are the same for all images"):
        small_config(objective=replace(RATE, features="class_token", layer=0))


def test_a_ratio_by_image_makes_the_loss_depend_on_how_a_step_is_split() -> None:
    config = small_config(optim=OPTIM)
    ranged = replace(config, masking=replace(config.masking, ratio_max=0.9))
    assert loss_in_words(ranged, 32) == "masked loss"
    assert loss_in_words(ranged, 8).startswith(
        "masked loss (mean over removed patches of 8 images at a time, so that the result depends"
    )
    by_step = replace(config, masking=replace(config.masking, ratio_max=0.9, ratio_per="step"))
    assert loss_in_words(by_step, 8) == "masked loss"


def test_a_rate_of_one_image_is_said_to_do_nothing() -> None:
    config = small_config(optim=OPTIM, objective=replace(RATE, over="batch"))
    told = "of one image R is always the largest, so that the term does nothing"
    assert loss_in_words(config, 1).endswith(told)
    assert told not in loss_in_words(config, 2)
    simdino = SimDINOConfig(reduce_cov=False)
    views = small_config(optim=OPTIM, data=DataConfig(), method="simdino", simdino=simdino)
    assert told not in loss_in_words(views, 1), "agreement of views is left"
