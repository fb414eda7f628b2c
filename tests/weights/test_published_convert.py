"""Checkpoint files with published names into weights folders, and back, from the command line."""

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from model_cases import GOLDEN_FACTS, gap, golden, golden_model, golden_under, make, tiny
from safetensors.torch import load_file, save_file
from torch import Tensor

from crate_mae import CrateMAE, load_model, save_model
from crate_mae.cli import main
from crate_mae.models.config import PRESETS
from crate_mae.weights.conversion import write_published
from crate_mae.weights.published import (
    Conversion,
    convert_checkpoint,
    from_reference,
    published_state,
)
from crate_mae.weights.weights_folder import weights_hash

FACTS = ["--num-heads", "4", "--sparsity", "0.5", "--no-norm-pix-loss"]
"""Of the golden state, which is random: there is nothing to measure."""


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A file as a training script leaves it, with the published key names."""
    path = tmp_path / "checkpoint.pth"
    state = {f"module.{key}": value for key, value in golden_under("state.").items()}
    torch.save({"model": state, "epoch": 799, "args": argparse.Namespace(lr=1e-4)}, path)
    return path


def assert_golden(model: Any) -> None:
    assert isinstance(model, CrateMAE)
    out = model(golden()["images"], golden()["mask"])
    assert gap(out.prediction, golden()["masked.pred"]) <= 1e-5


def test_a_checkpoint_becomes_a_weights_folder(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "weights"
    words = ["convert", str(published), "--out", str(folder), *FACTS]
    assert main(words) == 0
    told = capsys.readouterr().out
    model = load_model(folder)
    assert_golden(model)
    count = sum(p.numel() for p in model.parameters())
    for expected in (
        f"parameters  {count:,}", weights_hash(folder), "pos_embed (1, ", "decoder_embed.weight",
        "decoder_embed.bias (48,) (never used)", "decoder_pos_embed", "(the table is computed)",
        "none of the published ones: width 48, 2 + 2 layers, 32 x 32 pixels in patches of 8 x 8",
        "heads       4 + 4", "lambda      0.5, eta 0.1", "targets     pixels",
    ):  # fmt: skip
        assert expected in told, expected
    assert main(words) == 1
    assert "not overwritten" in capsys.readouterr().err


def test_the_way_back_and_forth(published: Path, tmp_path: Path) -> None:
    convert_checkpoint(published, tmp_path / "weights", GOLDEN_FACTS)
    for name in ("back.safetensors", "back.pth"):
        words = ["convert", str(tmp_path / "weights"), "--to-reference", str(tmp_path / name)]
        assert main(words) == 0
        assert_golden(from_reference(tmp_path / name, GOLDEN_FACTS))
        assert main(words) == 1, "never overwritten"
        with pytest.raises(FileExistsError, match="not overwritten"):
            write_published(tmp_path / "weights", tmp_path / name)
    kept = {k: v for k, v in golden_under("state.").items() if not k.startswith("decoder_embed")}
    del kept["pos_embed"]
    found = load_file(tmp_path / "back.safetensors")
    assert found.keys() == kept.keys()
    for key, value in kept.items():
        assert gap(found[key], value) <= (1e-5 if key == "decoder_pos_embed" else 0), key


def test_what_the_file_does_not_hold_is_as_given(published: Path, tmp_path: Path) -> None:
    words = ["convert", str(published), "--out", str(tmp_path / "w"), "--num-heads", "8",
             "--decoder-num-heads", "6", "--step-size", "0.2", "--sparsity", "0.3",
             "--norm-pix-loss"]  # fmt: skip
    assert main(words) == 0
    config = load_model(tmp_path / "w").config
    assert (config.num_heads, config.decoder_num_heads) == (8, 6)
    assert (config.step_size, config.sparsity, config.norm_pix_loss) == (0.2, 0.3, True)


@pytest.mark.parametrize("name", ["tiny", "small", "base", "large"])
def test_the_page_names_the_sizes_to_expect(name: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "weights.md").read_text(encoding="utf-8")
    with torch.device("meta"):
        count = sum(p.numel() for p in CrateMAE(PRESETS[name]).parameters())
    assert f"{count:,}" in page


@pytest.mark.parametrize("name", ["tiny", "small", "base", "large"])
def test_published_sizes_are_known_and_other_heads_warned_of(name: str, tmp_path: Path) -> None:
    def made(**heads: int) -> Conversion:
        config = PRESETS[name].to_dict() | heads
        return Conversion(
            folder=tmp_path,
            config=type(PRESETS[name]).from_dict(config),
            parameters=1,
            sha256="",
            passed_over=[],
        )

    assert made().preset == name
    assert "warning" not in made().text()
    assert "every result is wrong" in made(num_heads=2).text()
    assert "every result is wrong" in made(decoder_num_heads=2).text()


def test_what_is_no_checkpoint_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = golden_under("state.")
    encoder = {k: v for k, v in state.items() if not k.startswith(("decoder_blocks", "mask"))}
    save_file(encoder, tmp_path / "encoder.safetensors")
    broken = {key: value.clone() for key, value in state.items()}
    broken["norm.weight"][0] = torch.inf
    save_file(broken, tmp_path / "broken.safetensors")
    (tmp_path / "web.pth").write_text("<html>quota exceeded</html>")
    for given, (name, message) in product(
        (FACTS, []),
        (
            ("encoder.safetensors", "holds an encoder only"),
            ("broken.safetensors", "not finite, in norm.weight"),
            ("web.pth", "a web page, not the file itself"),
            ("none.pth", "no checkpoint file"),
        ),
    ):
        words = ["convert", str(tmp_path / name), "--out", str(tmp_path / "w")]
        assert main([*words, *given]) == 1, name
        assert message in capsys.readouterr().err
        assert not (tmp_path / "w").exists()


def test_a_pickle_cannot_claim_more_than_it_holds(tmp_path: Path) -> None:
    """One value repeated by a stride of 0 would else ask for terabytes of model."""
    state: dict[str, Tensor] = golden_under("state.") | {
        "patch_embed.proj.weight": torch.zeros(1).expand(1 << 20, 3, 16, 16)
    }
    path = tmp_path / "bomb.pth"
    torch.save({"model": state}, path)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ValueError, match=r"patch_embed.proj.weight claims 805,306,368 values"):
        published_state(path)


@pytest.mark.parametrize(
    "tensor", [torch.empty(3, device="meta"), torch.ones(2, 2).to_sparse()], ids=["meta", "sparse"]
)
def test_tensors_without_values_of_their_own_are_refused(tensor: Tensor) -> None:
    """A few bytes can name a tensor of any size on the meta device."""
    with pytest.raises(ValueError, match=r"pos_embed is no plain tensor"):
        published_state({"pos_embed": tensor})


def test_what_the_published_code_cannot_express(tmp_path: Path) -> None:
    save_model(make(tiny(mask_tokens="decoder")), tmp_path / "visible")
    with pytest.raises(ValueError, match="mask tokens in the encoder only"):
        write_published(tmp_path / "visible", tmp_path / "x.pth")
    assert not list(tmp_path.glob("*.pth"))
    save_model(golden_model(), tmp_path / "plain")
    with pytest.raises(ValueError, match="must end in"):
        write_published(tmp_path / "plain", tmp_path / "x.bin")
