"""The first ten minutes: a trained model at work within seconds, then training one on digits."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crate_mae.batches.transforms import displayed, prepare
from crate_mae.common.progress import progress_bar
from crate_mae.common.randomness import keyed_generator
from crate_mae.dense.attention import attention_maps
from crate_mae.dense.token_maps import token_map
from crate_mae.dense.token_pca import fit_token_map
from crate_mae.evaluation.reconstruction import reconstruct
from crate_mae.figures.attention_sheet import draw_attention
from crate_mae.figures.reconstruction_sheet import draw_reconstruction
from crate_mae.figures.run_curves import draw_training
from crate_mae.figures.token_sheets import draw_pca
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.masks import draw_mask
from crate_mae.report.page import write_report
from crate_mae.sources.photographs import PHOTOGRAPHS, photograph, square
from crate_mae.training.metrics_log import read_metrics
from crate_mae.training.parse import parse_pretrain
from crate_mae.training.pretrain import pretrain
from crate_mae.training.run_folder import (
    CONFIG,
    FREE_ON_RESUME,
    changed_keys,
    load_config_values,
    recorded_start,
)
from crate_mae.weights.weights_folder import load_autoencoder

RECIPE = "digits"
TRAINED = "cifar10-small"
_IMAGES = ("data.source:", "data.val_source:", "data.test_source:")
PICTURES = ("reconstruction.png", "pca.png", "attention.png")

# (photograph of scikit-learn, side of a square as a share of its height, its centre)
_SQUARES = (
    ("china", 1.0, (0.5, 0.5)),
    ("china", 0.6, (0.4, 0.4)),
    ("flower", 1.0, (0.5, 0.5)),
    ("flower", 0.6, (0.4, 0.4)),
)
# Rows and columns of patches that the whole photographs (2 : 3) are cut into.
_WIDE = (32, 48)
_ATTENDED = (16, 24)
_BLOSSOM = (7, 11)  # row and column of the patch in its middle


def run_demo(folder: Path) -> str | None:
    """What the demo found, as text, or None when it was stopped early.

    First the shipped model is shown at work, in a folder beside (see `show_trained`). Pictures and
    numbers of the training lie in `folder`, and `report.html` tells them all. A finished demo is
    only read again, an interrupted one is continued. Raises FileExistsError for the folder of
    another run, what `pretrain` and `write_report` raise, and RuntimeError when the report could
    not measure the digits.
    """
    if folder.name in ("", ".."):  # such as ".": only the whole path has a name
        folder = folder.resolve()
    _check_own(folder)
    shown = folder.with_name(f"{folder.name}-{TRAINED}")
    if not all((shown / name).exists() for name in PICTURES):
        print(show_trained(shown))
    if not (folder / "summary.json").exists():
        resume = (folder / CONFIG).exists()
        config, _ = parse_pretrain(["--resume", str(folder)] if resume else ["--config", RECIPE])
        print(f"{'continuing' if resume else 'training'} in {folder}: digits, a few minutes")
        summary = pretrain(config, folder, resume=resume, command=["crate-mae", "demo"])
        if not summary.finished:
            return None
    draw_training(read_metrics(folder), folder / "training.png", overwrite=True)
    report = write_report(folder, progress=progress_bar)
    if report.left_out:
        raise RuntimeError(f"{report.path} is not complete: {' '.join(report.left_out)}")
    return _findings(folder) + _next_steps(folder, report.path, shown)


def _check_own(folder: Path) -> None:
    """Raise FileExistsError where a folder holds another run than one of the demo's recipe."""
    if not (folder / CONFIG).is_file():
        return
    recorded = load_config_values(folder)
    own = parse_pretrain(["--config", RECIPE])[0].to_dict()
    # Where images lie is free on resuming, as the same ones may have moved; here it is which ones.
    free = tuple(key for key in FREE_ON_RESUME if key not in _IMAGES)
    changes = [line for line in changed_keys(_known_to(recorded, own), recorded)
               if not line.startswith(free)]  # fmt: skip
    start = recorded_start(folder)
    if start is not None:
        changes.insert(0, f"start: random weights -> {start.weights}")
    if not changes:
        return
    shown = "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if changes[3:] else "")
    data = recorded.get("data")
    source = data.get("source") if isinstance(data, dict) else None
    raise FileExistsError(
        f"{folder} holds another run, {recorded.get('name')} on {source}, whose settings are not"
        f" the demo's ({shown}): name another folder with --out"
    )


def _known_to(recorded: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without settings that are not recorded, as they did not exist then."""
    return {
        key: _known_to(recorded[key], value)
        if isinstance(value, dict) and isinstance(recorded[key], dict)
        else value
        for key, value in values.items()
        if key in recorded
    }


def show_trained(folder: Path) -> str:
    """What the shipped model makes of two photographs that it never saw, as text.

    The folder then holds PICTURES: squares completed from a quarter of their patches, and for whole
    photographs the principal components of the features and where a patch attends. Files of these
    names are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = load_autoencoder(TRAINED)
    photographs = {name: photograph(name) for name in PHOTOGRAPHS}
    squares = [square(photographs[name], share, centre) for name, share, centre in _SQUARES]
    completed = reconstruct(model, prepare(squares, model.preprocess), _masks(model))
    names = [
        f"{name}, {pixels.shape[-1]} px"
        for (name, _, _), pixels in zip(_SQUARES, squares, strict=True)
    ]
    draw_reconstruction(completed, folder / PICTURES[0], names=names, overwrite=True)

    wide = _fitted(list(photographs.values()), model, _WIDE)
    tokens = token_map(model, wide)
    draw_pca(
        tokens,
        fit_token_map(tokens)[0],
        displayed(wide, model.preprocess),
        folder / PICTURES[1],
        names=list(photographs),
        overwrite=True,
    )
    flower = _fitted([photographs["flower"]], model, _ATTENDED)
    draw_attention(
        attention_maps(model, flower, query=_BLOSSOM),
        displayed(flower, model.preprocess),
        folder / PICTURES[2],
        name="flower",
        overwrite=True,
    )
    psnr = float(completed.psnr.mean())
    return (
        f"{TRAINED}, a small trained model that comes with the package, on photographs it never"
        f" saw:\n  {folder}/{PICTURES[0]}  three quarters removed and completed, {psnr:.1f} dB\n"
        f"  {folder}/{PICTURES[1]}  its features in three colours\n"
        f"  {folder}/{PICTURES[2]}  where a patch of the blossom attends, layer by layer\n"
        "now one is trained from nothing:"
    )


def _masks(model: CrateMAE) -> Tensor:
    """The masks (B, L) of the squares, three quarters removed, always the same."""
    return torch.cat(
        [
            draw_mask("random", model.config.grid, 0.75, keyed_generator(0, index))
            for index in range(len(_SQUARES))
        ]
    )


def _fitted(photographs: list[Tensor], model: CrateMAE, grid: tuple[int, int]) -> Tensor:
    (rows, columns), (height, width) = grid, model.config.patch_hw
    return prepare(photographs, replace(model.preprocess, size=(rows * height, columns * width)))


def _findings(folder: Path) -> str:
    metrics = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["metrics"]
    psnr = json.loads((folder / "reconstruction.json").read_text(encoding="utf-8"))["psnr"]
    return (
        f"\nvalidation loss {metrics['val/loss']:.4f}"
        f" (one colour: {metrics['val/mean_colour']:.4f},"
        f" each patch's own mean: {metrics['val/patch_mean']:.4f})\n"
        f"PSNR on removed patches of the pictures {sum(psnr) / len(psnr):.2f} dB\n\n"
        + (folder / "evaluation.txt").read_text(encoding="utf-8")
    )


def _next_steps(folder: Path, page: Path, shown: Path) -> str:
    return (
        f"\nopen        {page}: everything on one page, with explanations\n"
        f"look at     {folder}/reconstruction.png, {folder}/training.png, {folder}/analysis\n"
        f"            {shown}: the model that comes with the package, at work\n"
        f"numbers     {folder}/metrics.csv, {folder}/evaluation.json\n"
        f"weights     {folder}/weights\n"
        "next        crate-mae pretrain --config own-images --data.source imagefolder:PATH"
        " --out runs/mine\n"
    )
