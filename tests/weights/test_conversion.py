"""Published files in every layout: told by themselves, whole or refused, and back."""

import argparse
import io
import pickle
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_cases import FAMILY, family_golden, gap, images_for, make, tiny, under
from safetensors.torch import load_file, save_file
from torch import Tensor

from crate_mae import load_model, save_model
from crate_mae.cli import main
from crate_mae.models.classifier import CrateClassifier
from crate_mae.models.crate_encoder import CrateEncoder
from crate_mae.models.depict import SegmentationDecoder
from crate_mae.weights.conversion import convert_family, family_of, read_checkpoint, write_published
from crate_mae.weights.jax_arrays import to_jax
from crate_mae.weights.published_classifiers import (
    ClassifierFacts,
    encoder_from_published,
    from_published,
    is_encoder_alone,
)
from crate_mae.weights.published_depict import from_depict, load_decoder, save_decoder, to_depict

FACTS = ClassifierFacts(num_heads=4)


def state_of(name: str, prefix: str = "param.") -> dict[str, Tensor]:
    """A fresh published state."""
    return {k: v.clone() for k, v in under(family_golden(name)[0], prefix).items()}


def training_file(state: dict[str, Tensor]) -> dict[str, Any]:
    """What CRATE's training script saves."""
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimiser = torch.optim.AdamW([parameter], lr=1e-3)
    parameter.grad = torch.ones(3)
    optimiser.step()
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, 1)
    return {
        "epoch": 3,
        "arch": "CRATE_tiny",
        "state_dict": {f"module.{key}": value for key, value in state.items()},
        "best_acc1": torch.tensor(12.5),
        "optimizer": optimiser.state_dict(),
        "scheduler": {
            k: v for k, v in schedule.state_dict().items() if k != "_get_lr_called_within_step"
        },
    }


def npz(path: Path, arrays: dict[str, Any], **more: Any) -> Path:
    """A file of arrays, with an optimiser's beside the model's."""
    moments = {"opt/0/mu": np.zeros(3, np.uint16).view("V2"), "opt/0/nu": np.ones((2, 2))}
    np.savez(path, allow_pickle=True, **arrays, **moments, **more)
    return path


def alpha_arrays() -> dict[str, Any]:
    return to_jax(state_of("crate_alpha"), 4)


# --- classifiers ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["crate", "crate_alpha"])
@pytest.mark.parametrize("form", ["bare", "model", "training", "safetensors"])
def test_every_wrapping_is_read(name: str, form: str, tmp_path: Path) -> None:
    state = state_of(name)
    path = tmp_path / ("file.safetensors" if form == "safetensors" else "file.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        whole = {"bare": state, "model": {"model": state}, "training": training_file(state)}
        torch.save(whole[form], path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.family == name.replace("_", "-")
    found = convert_family(checkpoint, tmp_path / "out", FACTS)
    assert found.family in found.text()
    assert "4 (as given)" in found.text()
    golden, _ = family_golden(name)
    model = load_model(tmp_path / "out")
    assert isinstance(model, CrateClassifier)
    assert gap(model(golden["in.image"]), golden["f32.logits"]) <= 1e-5


def test_jax_arrays_are_the_ports_and_tell_their_heads(tmp_path: Path) -> None:
    path = npz(tmp_path / "alpha.npz", alpha_arrays())
    checkpoint = read_checkpoint(path)
    assert (checkpoint.family, checkpoint.num_heads, checkpoint.from_jax) == (
        "crate-alpha",
        4,
        True,
    )
    found = convert_family(checkpoint, tmp_path / "out")
    assert found.passed_over == ["2 optimiser's arrays"]
    assert "4 (by the shapes of its projections)" in found.text()
    model = load_model(tmp_path / "out")
    assert isinstance(model, CrateClassifier)
    assert model.config.final_norm_eps == 1e-6
    golden, _ = family_golden("crate_alpha")
    assert gap(model(golden["in.image"]), golden["f32.logits"]) <= 1e-4  # another epsilon
    with pytest.raises(ValueError, match="has 4 heads in its projections, not 6"):
        convert_family(checkpoint, tmp_path / "other", ClassifierFacts(num_heads=6))


def test_jax_arrays_by_their_definition() -> None:
    """x @ proj[:, k] are the coordinates in head k; out[k] takes them back."""
    state = state_of("crate_alpha")
    arrays = to_jax(state, 4)
    place = "params/Transformer/encoderblock_1/MultiHeadDotProductSubspaceAttention_0"
    proj, out = arrays[f"{place}/proj/kernel"], arrays[f"{place}/out/kernel"]
    assert (proj.shape, out.shape) == ((24, 4, 6), (4, 6, 24))
    x = np.random.default_rng(0).normal(size=24)
    U = state["transformer.layers.1.0.fn.qkv.weight"].numpy()
    W = state["transformer.layers.1.0.fn.to_out.0.weight"].numpy()
    for head in range(4):
        w = np.array([sum(x[i] * U[6 * head + j, i] for i in range(24)) for j in range(6)])
        assert np.allclose(x @ proj[:, head], w)
        assert np.allclose(w @ out[head], W[:, 6 * head : 6 * head + 6] @ w)
    filters = arrays["params/embedding/kernel"]
    assert filters.shape == (4, 4, 3, 24)
    assert filters[1, 2, 0, 5] == state["conv1.weight"][5, 0, 1, 2]


def test_one_head_of_jax_has_an_output_map_that_does_nothing(tmp_path: Path) -> None:
    """JAX's code has one with any number of heads, the port and our layers none with one."""
    torch.manual_seed(0)
    config = replace(
        FAMILY["crate-alpha"], num_heads=1, decoder_num_heads=1, image_size=(4, 6), patch_size=2
    )
    model = CrateClassifier(config, num_classes=3, pool="cls").eval()
    save_model(model, tmp_path / "ours")
    write_published(tmp_path / "ours", tmp_path / "one.npz")
    arrays = dict(np.load(tmp_path / "one.npz"))
    kernels = [key for key in arrays if key.endswith("out/kernel")]
    assert len(kernels) == config.depth
    d = config.dim
    assert all(np.array_equal(arrays[key], np.eye(d)[None]) for key in kernels)
    facts = ClassifierFacts(image_size=config.image_hw)
    convert_family(read_checkpoint(tmp_path / "one.npz"), tmp_path / "again", facts)
    images = images_for(config)
    assert torch.equal(load_model(tmp_path / "again")(images), model(images))
    arrays[kernels[0]][0, 0, 1] = 0.5
    with pytest.raises(
        ValueError, match=r"one head and an output map, .*0\.0\.fn\.to_out.*identity"
    ):
        read_checkpoint(npz(tmp_path / "odd.npz", arrays))


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "npz"])
@pytest.mark.parametrize("family", ["crate", "crate-alpha"])
def test_weights_go_out_and_come_back(family: str, suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = FAMILY[family]
    model = CrateClassifier(config, num_classes=4, pool="cls").eval()
    save_model(model, tmp_path / "ours")
    target = tmp_path / f"theirs.{suffix}"
    if suffix == "npz" and family == "crate":
        with pytest.raises(ValueError, match="only CRATE-alpha has files of JAX"):
            write_published(tmp_path / "ours", target)
        assert not target.exists()
        return
    assert write_published(tmp_path / "ours", target) == len(model.state_dict())
    facts = ClassifierFacts(num_heads=3, image_size=config.image_hw)
    convert_family(read_checkpoint(target), tmp_path / "again", facts)
    again = load_model(tmp_path / "again")
    assert isinstance(again, CrateClassifier)
    images = images_for(config)
    tolerance = 1e-4 if family == "crate-alpha" else 0.0  # the port's last epsilon is another
    assert gap(again(images), model(images)) <= tolerance
    with pytest.raises(FileExistsError, match="not overwritten"):
        write_published(tmp_path / "ours", target)


def test_what_lies_beside_the_tensors_is_told(tmp_path: Path) -> None:
    """An average of the weights in the same file is not what is read."""
    state = state_of("crate")
    average = {key: value + 1 for key, value in state.items()}
    whole = training_file(state) | {"state_dict_ema": average, "history": []}
    torch.save(whole, tmp_path / "file.pth")
    found = convert_family(read_checkpoint(tmp_path / "file.pth"), tmp_path / "out", FACTS)
    assert found.passed_over == ["optimizer, scheduler, state_dict_ema beside the tensors"]
    model = load_model(tmp_path / "out")
    assert torch.equal(model.encoder.class_token, state["cls_token"])


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "_orig_mod.module."])
def test_tensors_that_differ_in_their_prefix_alone_are_refused(prefix: str, tmp_path: Path) -> None:
    state = state_of("crate")
    state[f"{prefix}cls_token"] = state["cls_token"] + 1
    torch.save(state, tmp_path / "file.pth")
    message = rf"cls_token is held twice, the second time as {re.escape(prefix)}cls_token"
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / "file.pth")
    own = state_of("depict", "sa.param.")
    own["decoder.cls_emb"] = own["cls_emb"] + 1
    with pytest.raises(ValueError, match=r"cls_emb is held twice, with and without decoder\."):
        from_depict(own)


def test_what_no_file_of_crate_holds_is_told_when_it_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    facts = replace(FACTS, step_size=0.3, pool="mean-all")
    model = from_published(state_of("crate"), facts)
    save_model(model, tmp_path / "ours")
    write_published(tmp_path / "ours", tmp_path / "back.pth")
    assert "cannot hold ista=0.3 and pool='mean'" in caplog.text
    again = from_published(read_checkpoint(tmp_path / "back.pth").state, facts)
    images = family_golden("crate")[0]["in.image"]
    assert torch.equal(again(images), model(images))
    caplog.clear()
    save_model(from_published(state_of("crate"), FACTS), tmp_path / "plain")
    write_published(tmp_path / "plain", tmp_path / "plain.pth")
    assert not caplog.text


# --- DEPICT -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["sa", "ca"])
def test_decoders_go_in_and_out(form: str, tmp_path: Path) -> None:
    golden, _ = family_golden("depict")
    own = state_of("depict", f"{form}.param.")
    encoder = {
        "encoder.cls_token": torch.zeros(1, 1, 24),
        "encoder.blocks.0.attn.qkv.weight": own["cls_emb"],
    }
    whole = {f"decoder.{key}": value for key, value in own.items()} | encoder
    torch.save({"model": whole, "optimizer": {}}, tmp_path / "checkpoint.pth")
    checkpoint = read_checkpoint(tmp_path / "checkpoint.pth")
    found = convert_family(checkpoint, tmp_path / "out")
    assert found.passed_over == ["2 tensors of an encoder, a ViT"]
    decoder = load_decoder(tmp_path / "out")
    rounding = max(1e-5, 2 * gap(golden[f"{form}.f32.masks"], golden[f"{form}.out.masks"]))
    assert gap(decoder(golden["in.features"], (3, 4)), golden[f"{form}.f32.masks"]) <= rounding
    back = to_depict(decoder)
    assert back.keys() == {f"decoder.{key}" for key in own}
    assert all(torch.equal(back[f"decoder.{key}"], value) for key, value in own.items())
    with pytest.raises(ValueError, match="only CRATE-alpha has files of JAX"):
        write_published(tmp_path / "out", tmp_path / "theirs.npz")
    for suffix in ("pth", "safetensors"):
        target = str(tmp_path / f"theirs.{suffix}")
        assert main(["convert", str(tmp_path / "out"), "--to-reference", target]) == 0
        again = read_checkpoint(target)
        assert again.family == "depict"
        assert all(torch.equal(again.state[f"decoder.{key}"], own[key]) for key in own)
    assert torch.load(tmp_path / "theirs.pth").keys() == {"model"}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"head_dim": 60}, r"head_dim 60 \(not 100\)"),
        ({"form": "cross", "cross_head_dim": 60}, r"cross_head_dim 60 \(not 50\)"),
        ({"form": "self", "cross_head_dim": 60}, None),  # there is no such part
    ],
    ids=str,
)
def test_decoders_of_other_heads_have_no_published_form(
    sizes: dict[str, Any], message: str | None, tmp_path: Path
) -> None:
    decoder = SegmentationDecoder(dim=4, num_classes=3, num_layers=1, num_heads=1, **sizes)
    save_decoder(decoder, tmp_path / "decoder")
    if message is None:
        assert write_published(tmp_path / "decoder", tmp_path / "out.pth") == len(
            decoder.state_dict()
        )
        return
    with pytest.raises(ValueError, match=f"of depict cannot express {message}"):
        write_published(tmp_path / "decoder", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_decoders_that_are_damaged_are_refused(tmp_path: Path) -> None:
    own = state_of("depict", "sa.param.")
    for key in own:
        cut = {name: value for name, value in own.items() if name != key}
        if key == "cls_emb":
            with pytest.raises(ValueError, match="cls_emb is missing"):
                from_depict(cut)
            continue
        with pytest.raises(ValueError, match=r"missing|numbered"):
            from_depict(cut)
    with pytest.raises(ValueError, match=r"1 unexpected: class_norm.weight \(no published name\)"):
        from_depict(own | {"class_norm.weight": own["mask_norm.weight"]})
    with pytest.raises(ValueError, match="300 rows, which are no heads of 70"):
        from_depict(own, head_dim=70)
    own["mask_norm.bias"][0] = torch.nan
    with pytest.raises(ValueError, match=r"not finite, in class_norm.bias"):
        from_depict(own)
    decoder = SegmentationDecoder(dim=4, num_classes=3, num_layers=1, num_heads=1, head_dim=2)
    folder = save_decoder(decoder, tmp_path / "decoder")
    text = (folder / "config.json").read_text("utf-8")
    for old, new, message in (
        ('"num_layers": 1', '"num_layers": 100000', "num_layers of the decoder is 100000"),
        ('"dim": 4', '"width": 4', "must name"),
        ('"dim": 4', '"dim": 8', "instead of"),
        ("SegmentationDecoder", "Other", "names 'Other'"),
    ):
        (folder / "config.json").write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            load_decoder(folder)


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (["blocks.0.attn.temp", "blocks.0.mlp.fc1.weight"], "ToST model: its blocks have an MLP"),
        (
            ["transformer.h.0.attn.temp", "transformer.h.0.mlp.c_fc.weight"],
            "language model of ToST",
        ),
        (["visual.transformer.resblocks.0.attn.in_proj_weight"], "CLIPA model with a text tower"),
        (["blocks.0.attn.qkv.weight", "head.mlp.0.weight"], "this is a ViT"),
        (["blocks.0.0.attn.qkv.weight"], "this is a ViT"),
    ],
    ids=str,
)
def test_other_systems_are_refused_with_the_reason(keys: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        family_of({key: torch.zeros(2, 2) for key in keys})


def test_of_a_student_and_a_teacher_it_is_the_teacher(tmp_path: Path) -> None:
    prefixes = ("module._orig_mod.backbone.", "module.backbone.", "backbone.")
    for number, prefix in enumerate(prefixes):
        teacher = {f"{prefix}{key}": value for key, value in state_of("crate").items()}
        student = {key: torch.zeros_like(value) for key, value in teacher.items()}
        args = argparse.Namespace(arch="crate", lr=1.0)
        whole = {"student": student, "teacher": teacher, "epoch": 1, "args": args}
        torch.save(whole, tmp_path / f"{number}.pth")
        checkpoint = read_checkpoint(tmp_path / f"{number}.pth")
        assert checkpoint.family == "crate"
        assert torch.equal(checkpoint.state["cls_token"], state_of("crate")["cls_token"])


# --- encoders alone, as SimDINO leaves them -----------------------------------------------------


def teacher_of(family: str) -> dict[str, torch.Tensor]:
    """The tensors of an encoder alone behind SimDINO's prefix, with its projection head."""
    encoder = {k: v for k, v in state_of(family).items() if not k.startswith("mlp_head.1")}
    head = {f"head.mlp.{i}.{part}": torch.ones(3) for i in (0, 2, 4) for part in ("weight", "bias")}
    return {f"backbone.{key}": value for key, value in encoder.items()} | head


@pytest.mark.parametrize("family", ["crate", "crate_alpha"])
def test_an_encoder_alone_has_the_features_of_the_classifier(family: str, tmp_path: Path) -> None:
    torch.save({"student": {}, "teacher": teacher_of(family), "epoch": 3}, tmp_path / "file.pth")
    checkpoint = read_checkpoint(tmp_path / "file.pth")
    assert checkpoint.passed_over == ["6 tensors of SimDINO's projection head"]
    found = convert_family(checkpoint, tmp_path / "out", FACTS)
    assert found.facts["classes"] == "none: an encoder alone"
    model = load_model(tmp_path / "out")
    assert type(model) is CrateEncoder
    golden, _ = family_golden(family)
    state = state_of(family)
    scores = torch.nn.functional.linear(
        model.encode(golden["in.image"])[:, 0], state["mlp_head.1.weight"], state["mlp_head.1.bias"]
    )
    assert gap(scores, golden["f32.logits"]) <= 1e-5  # of the authors' whole classifier


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "npz"])
@pytest.mark.parametrize("family", ["crate", "crate-alpha"])
def test_encoders_alone_go_out_and_come_back(family: str, suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = FAMILY[family]
    if family == "crate-alpha":
        config = replace(config, final_norm_eps=1e-5)  # the port's
    model = CrateEncoder(config).eval()
    save_model(model, tmp_path / "ours")
    target = tmp_path / f"theirs.{suffix}"
    if suffix == "npz":
        with pytest.raises(ValueError, match="JAX's files hold classifiers"):
            write_published(tmp_path / "ours", target)
        assert not target.exists()
        return
    assert write_published(tmp_path / "ours", target) == len(model.state_dict())
    facts = ClassifierFacts(num_heads=3, image_size=config.image_hw)
    convert_family(read_checkpoint(target), tmp_path / "again", facts)
    again = load_model(tmp_path / "again")
    assert type(again) is CrateEncoder
    images = images_for(config)
    assert torch.equal(again.encode(images), model.encode(images))


def test_encoders_alone_are_read_completely_or_not_at_all(tmp_path: Path) -> None:
    whole = {k: v for k, v in state_of("crate").items() if not k.startswith("mlp_head.1")}
    assert is_encoder_alone(whole)
    for key in whole:
        cut = {name: value for name, value in whole.items() if name != key}
        renamed = cut | {key.replace("weight", "wieght") + "_": whole[key]}
        reshaped = cut | {key: whole[key].new_zeros(*whole[key].shape, 2)}
        for broken in (cut, renamed, reshaped):
            with pytest.raises(
                ValueError, match=r"missing|numbered|instead of|no complete|no tens"
            ):
                encoder_from_published(broken, FACTS)
    for odd in ("mlp_head.2.weight", "head.mlp.0.gain"):
        with pytest.raises(ValueError, match=rf"1 unexpected: {odd} \(no published name\)"):
            encoder_from_published(whole | {odd: torch.zeros(2)}, FACTS)
    normless = {key: value for key, value in whole.items() if not key.startswith("mlp_head")}
    with pytest.raises(ValueError, match="this encoder has no norm behind its layers"):
        encoder_from_published(normless, FACTS)
    with pytest.raises(ValueError, match=r"no head that a pool \(mean-all\) could be of"):
        encoder_from_published(whole, replace(FACTS, pool="mean-all"))
    with pytest.raises(ValueError, match="no tensors of a CRATE or CRATE-alpha encoder alone"):
        encoder_from_published(state_of("crate"), FACTS)
    with pytest.raises(ValueError, match=r"mlp_head\.1\.weight is missing"):
        from_published(whole, FACTS)
    half = state_of("crate")
    del half["mlp_head.1.weight"]  # a classifier that was cut is none
    torch.save(half, tmp_path / "half.pth")
    with pytest.raises(ValueError, match=r"mlp_head\.1\.weight is missing"):
        convert_family(read_checkpoint(tmp_path / "half.pth"), tmp_path / "out", FACTS)
    broken = dict(whole)
    broken["cls_token"] = torch.full_like(whole["cls_token"], torch.nan)
    with pytest.raises(ValueError, match="not finite, in cls_token"):
        encoder_from_published(broken, FACTS)
    assert not (tmp_path / "out").exists()


def test_an_encoder_of_other_operators_has_no_published_form(tmp_path: Path) -> None:
    save_model(CrateEncoder(FAMILY["aot"]), tmp_path / "aot")
    with pytest.raises(ValueError, match=r"crate-alpha cannot express .*sparse_step 'none'"):
        write_published(tmp_path / "aot", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


class Attack:
    """What a hostile pickle runs."""

    def __reduce__(self) -> Any:
        return (Path("/tmp/crate-mae-was-here").touch, ())


@pytest.mark.parametrize("suffix", ["pth", "npz"])
def test_nothing_in_a_file_is_executed(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"hostile.{suffix}"
    if suffix == "pth":
        torch.save(state_of("crate") | {"evil": Attack()}, path)
    else:
        evil = np.empty(1, dtype=object)
        evil[0] = Attack()
        npz(path, alpha_arrays(), cls2=evil)
    with pytest.raises(ValueError, match=r"plain (tensors|arrays)"):
        read_checkpoint(path)
    assert not Path("/tmp/crate-mae-was-here").exists()
    path.write_bytes(pickle.dumps(Attack()))
    with pytest.raises(ValueError, match=r"plain tensors|no complete .npz"):
        read_checkpoint(path)
    assert not Path("/tmp/crate-mae-was-here").exists()


def test_damaged_arrays_are_refused(tmp_path: Path) -> None:
    path = npz(tmp_path / "alpha.npz", alpha_arrays())
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=r"no complete .npz file"):
            read_checkpoint(path)
    for key in alpha_arrays():
        arrays = alpha_arrays()
        del arrays[key]
        npz(path, arrays)
        with pytest.raises(ValueError, match=r"missing|numbered|heads"):
            convert_family(read_checkpoint(path), tmp_path / "out", FACTS)
    npz(path, {**alpha_arrays(), "params/odd": np.zeros(2, np.float32)})
    with pytest.raises(ValueError, match="1 unexpected: odd"):
        convert_family(read_checkpoint(path), tmp_path / "out", FACTS)
    npz(path, {**alpha_arrays(), "params/cls": np.zeros((1, 1, 24), np.int64)})
    with pytest.raises(ValueError, match="holds int64, no floating-point numbers"):
        read_checkpoint(path)
    assert not (tmp_path / "out").exists()


def test_an_array_that_claims_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)}
    )
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        archive.writestr("params/cls.npy", header.getvalue() + b"\0" * 16)
    with pytest.raises(ValueError, match="claims 4,398,046,511,104 bytes"):
        read_checkpoint(tmp_path / "bomb.npz")


# --- the command line -------------------------------------------------------------------------


def test_the_command_tells_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(state_of("crate"), tmp_path / "crate.pth")
    source, out = str(tmp_path / "crate.pth"), str(tmp_path / "out")
    assert main(["convert", source, "--out", out]) == 1
    assert "no crate of width 24 was published" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["convert", source, "--out", out, "--num-heads", "4"]) == 0
    said = capsys.readouterr().out
    assert "family      crate" in said
    assert "classes     7, pool cls" in said
    assert main(["convert", source, "--out", out, "--num-heads", "4"]) == 1  # it is there
    assert main(["convert", out, "--to-reference", str(tmp_path / "back.safetensors")]) == 0
    back = load_file(tmp_path / "back.safetensors")
    assert all(torch.equal(back[key], value) for key, value in state_of("crate").items())
    capsys.readouterr()
    assert main(["convert", source, "--out", str(tmp_path / "x"), "--norm-pix-loss"]) == 1
    assert "crate, which has nothing to do with --norm-pix-loss" in capsys.readouterr().err


def test_a_masked_autoencoder_of_other_operators_has_no_published_form(tmp_path: Path) -> None:
    save_model(make(FAMILY["tost"]), tmp_path / "tost")
    with pytest.raises(ValueError, match="the published code has no attention 'tssa'"):
        write_published(tmp_path / "tost", tmp_path / "out.pth")
    save_model(make(tiny()), tmp_path / "plain")
    assert write_published(tmp_path / "plain", tmp_path / "out.pth") > 0
    with pytest.raises(ValueError, match="must end in"):
        write_published(tmp_path / "plain", tmp_path / "out.bin")
