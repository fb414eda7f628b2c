"""Starting from a model: its architecture taken by one word, other sizes and channels adapted."""

import hashlib
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from data_cases import MODEL
from hypothesis import given, settings
from hypothesis import strategies as st
from training_runs import assert_same_run, small_config, small_finetune

from crate_mae import build_model, save_model
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.classifier import CrateClassifier
from crate_mae.models.config import Embedding
from crate_mae.models.patches import unpatchify
from crate_mae.training.finetune import finetune
from crate_mae.training.parse import parse_pretrain
from crate_mae.training.pretrain import pretrain
from crate_mae.training.run_folder import with_recorded_start
from crate_mae.training.starting_weights import starting_tensors, with_channels


def small(**overrides: Any) -> CrateMAE:
    torch.manual_seed(0)
    model = build_model("debug", image_size=16, patch_size=4, dim=16, **overrides)
    for parameter in model.parameters():  # biases, too, which begin at zero
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def with_other_channels(model: CrateMAE, channels: int) -> CrateMAE:
    old = model.config.channels
    other = small(channels=channels, embedding=model.config.embedding)
    state = with_channels(model.state_dict(), old, channels, patch_hw=model.config.patch_hw)
    other.load_state_dict(state)
    return other


@settings(max_examples=40, deadline=None)
@given(
    embedding=st.sampled_from(["conv", "norm-linear-norm"]),
    old=st.integers(1, 5),
    new=st.integers(1, 5),
)
def test_an_image_of_equal_channels_stays_the_same_to_the_model(
    embedding: Embedding, old: int, new: int
) -> None:
    before = small(channels=old, embedding=embedding)
    after = with_other_channels(before, new)
    grey = torch.rand(2, 1, 16, 16)
    with torch.inference_mode():
        features = before.encode(grey.expand(-1, old, -1, -1))
        again = after.encode(grey.expand(-1, new, -1, -1))
        torch.testing.assert_close(again, features, atol=1e-4, rtol=1e-4)
        # What is predicted of each new channel is the mean over the old ones, pixel by pixel.
        drawn = unpatchify(before.decode(features, None, (4, 4)), (4, 4), (4, 4), old)
        redrawn = unpatchify(after.decode(again, None, (4, 4)), (4, 4), (4, 4), new)
        expected = drawn.mean(dim=1, keepdim=True).expand(-1, new, -1, -1)
        torch.testing.assert_close(redrawn, expected, atol=1e-4, rtol=1e-4)


def test_the_architecture_is_that_of_the_weights_and_typed_words_win(tmp_path: Path) -> None:
    folder = save_model(small(sparsity=0.3), tmp_path / "weights")
    words = ["--model.channels", "1", "--config", "own-images", "--init-from", str(folder)]
    config, options = parse_pretrain([*words, "--model.image_size=32", "--optim.epochs", "7"])
    assert options["init_from"] == str(folder)
    assert (config.model.dim, config.model.depth, config.model.sparsity) == (16, 2, 0.3)
    assert (config.model.channels, config.model.image_hw) == (1, (32, 32))
    assert config.model.patch_hw == (4, 4), "of the weights, not of the recipe"
    assert config.optim.epochs == 7
    assert config.masking.ratio == parse_pretrain(["--config", "own-images"])[0].masking.ratio
    shipped, _ = parse_pretrain(["--config", "own-images", "--init-from=cifar10-shallow"])
    assert (shipped.model.dim, shipped.model.depth) == (192, 2)


def test_what_is_adapted_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_model(small(), tmp_path / "weights")
    words = ["--init-from", str(folder), "--model.channels", "7", "--model.image_size", "[8, 24]"]
    config, _ = parse_pretrain(words)
    with caplog.at_level(logging.INFO, logger="crate_mae"):
        tensors = starting_tensors(config, folder)
    CrateMAE(config.model).load_state_dict(tensors)
    for text in (
        "model.channels: 3 -> 7 (patch filters summed",
        "model.image_size: [16, 16] -> [8, 24] (positions are those of the new grid)",
        "its architecture, 2 + 2 layers of width 16, for images of 8 x 24; mean and std are those",
    ):
        assert text in caplog.text


def test_other_channels_for_an_embedding_between_norms(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_model(small(embedding="norm-linear-norm", channels=1), tmp_path / "weights")
    config, _ = parse_pretrain(["--init-from", str(folder), "--model.channels", "3"])
    started = CrateMAE(config.model)
    started.load_state_dict(starting_tensors(config, folder))
    assert started.encoder.patch_embed.linear.weight.shape == (16, 48)
    assert "model.channels: 1 -> 3 (patch filters, with gain and bias of the norm" in caplog.text


@pytest.mark.parametrize(
    ("size", "grid"), [((24, 16), (6, 4)), ((8, 12), (2, 3)), ((8, 32), (2, 8))]
)
def test_learned_positions_are_interpolated_to_the_new_grid(
    size: tuple[int, int], grid: tuple[int, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As torch interpolates; also to a grid of another shape, but as many patches."""
    source = small(positions="learned")
    folder = save_model(source, tmp_path / "weights")
    words = ["--init-from", str(folder), "--model.image_size", str(list(size))]
    config, _ = parse_pretrain(words)
    tensors = starting_tensors(config, folder)
    assert (
        f"model.image_size: [16, 16] -> {list(size)} (learned positions interpolated bilinearly to"
        " the new grid)" in caplog.text
    )
    old = source.encoder.positions.detach()
    places = old[1:].T.reshape(1, 16, 4, 4)
    places = torch.nn.functional.interpolate(places, grid, mode="bilinear", align_corners=False)
    found = tensors["encoder.positions"]
    assert torch.equal(found[0], old[0]), "the class token has no place"
    torch.testing.assert_close(found[1:], places[0].flatten(1).T)
    for key, value in source.state_dict().items():
        assert key == "encoder.positions" or torch.equal(tensors[key], value)
    started = CrateMAE(config.model).eval()
    started.load_state_dict(tensors)
    images = torch.rand(2, 3, *size)
    with torch.inference_mode():
        torch.testing.assert_close(started.encode(images), source.encode(images))


def test_weights_that_cannot_be_started_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier = CrateClassifier(small().config, num_classes=2, pool="mean")
    folder = save_model(classifier, tmp_path / "classifier")
    for name, message in (
        (str(folder), "holds no CRATE-MAE to start from (it is 'CrateClassifier')"),
        (str(tmp_path / "nothing"), "nothing"),
        ("cifar10-shallov", "cifar10-shallow"),
    ):
        with pytest.raises(SystemExit) as left:
            parse_pretrain(["--init-from", name])
        assert left.value.code == 2
        assert message in capsys.readouterr().err
    weights = save_model(small(), tmp_path / "weights")
    for word, value in (("dim", "32"), ("patch_size", "8"), ("sparsity", "0.9")):
        config, _ = parse_pretrain(["--init-from", str(weights), f"--model.{word}", value])
        with pytest.raises(ValueError, match=rf"model\.{word}: .*Only model\.image_size"):
            starting_tensors(config, weights)


def begun_and_lost(run: Path) -> Path:
    """A run as it lies there when it was killed before it had saved anything."""
    for name in ("checkpoints", "weights", "weights-best", "summary.json", "evaluation.json"):
        gone = run / name
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink(missing_ok=True)
    return run


def test_a_run_that_had_saved_nothing_begins_again_with_its_weights(tmp_path: Path) -> None:
    """Not with random ones, and not with others that lie there by now."""
    weights = save_model(CrateMAE(MODEL), tmp_path / "weights")
    hashed = hashlib.sha256((weights / "model.safetensors").read_bytes()).hexdigest()
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert pretrain(small_config(), whole, init_from=weights).finished
    assert not pretrain(small_config(), run, init_from=weights, stop_after=1).finished
    known = json.loads((run / "start.json").read_text())
    assert known == {"weights": str(weights), "sha256": hashed}
    begun_and_lost(run)
    assert pretrain(small_config(), run, resume=True).finished
    assert_same_run(whole, run)

    begun_and_lost(run)
    torch.manual_seed(7)
    save_model(CrateMAE(MODEL), weights, overwrite=True)
    with pytest.raises(ValueError, match=f"{hashed[:12]}.*saved nothing yet: start a new run"):
        pretrain(small_config(), run, resume=True)
    shutil.rmtree(weights)
    with pytest.raises(FileNotFoundError, match="weights"):
        pretrain(small_config(), run, resume=True)
    (run / "start.json").write_text('{"weights": 3}')
    with pytest.raises(ValueError, match=r"start\.json is damaged: it lacks the name or the SHA"):
        pretrain(small_config(), run, resume=True)


def test_what_has_saved_needs_its_first_weights_no_more(tmp_path: Path) -> None:
    weights = save_model(CrateMAE(MODEL), tmp_path / "weights")
    assert not pretrain(small_config(), tmp_path / "run", init_from=weights, stop_after=2).finished
    before = (tmp_path / "run" / "start.json").read_bytes()
    shutil.rmtree(weights)
    assert pretrain(small_config(), tmp_path / "run", resume=True).finished
    assert (tmp_path / "run" / "start.json").read_bytes() == before
    assert not pretrain(small_config(), tmp_path / "new", stop_after=1).finished
    assert not (tmp_path / "new" / "start.json").exists(), "it began with random weights"


def test_a_command_made_of_a_run_names_its_first_weights(tmp_path: Path) -> None:
    words = ["--optim.epochs", "3"]
    assert with_recorded_start(tmp_path, words) == words, "no run that began with weights"
    assert with_recorded_start(tmp_path / "none", words) == words
    (tmp_path / "start.json").write_text('{"weights": "photos64", "sha256": "12ab"}')
    assert with_recorded_start(tmp_path, words) == ["--init-from", "photos64", *words]
    for typed in (["--init-from", "other"], ["--init-from=other"]):
        assert with_recorded_start(tmp_path, [*words, *typed]) == [*words, *typed]


def test_fine_tuning_that_had_saved_nothing_refuses_other_weights(tmp_path: Path) -> None:
    weights = save_model(CrateMAE(MODEL), tmp_path / "weights")
    config = replace(small_finetune(), weights=str(weights), model=None)
    assert not finetune(config, tmp_path / "run", stop_after=1).finished
    assert json.loads((tmp_path / "run" / "start.json").read_text())["weights"] == str(weights)
    begun_and_lost(tmp_path / "run")
    torch.manual_seed(7)
    save_model(CrateMAE(MODEL), weights, overwrite=True)
    with pytest.raises(ValueError, match="saved nothing yet"):
        finetune(config, tmp_path / "run", resume=True)
