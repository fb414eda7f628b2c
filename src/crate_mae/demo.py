"""The first ten minutes: pre-train on handwritten digits, measure, reconstruct."""

import json
from pathlib import Path

from crate_mae.data.inputs import open_images
from crate_mae.evaluation.compare import compare, comparison_table, open_pair
from crate_mae.evaluation.reconstruction import reconstruct_source
from crate_mae.figures.reconstruction import reconstruction_sheet
from crate_mae.figures.training import training_curves
from crate_mae.files import write_atomically
from crate_mae.models.weights import load_autoencoder, weights_hash
from crate_mae.progress import counter
from crate_mae.training.folder import load_config_values
from crate_mae.training.parse import parse_pretrain
from crate_mae.training.records import read_metrics
from crate_mae.training.run import pretrain

RECIPE = "digits"


def run_demo(folder: Path) -> str | None:
    """What the demo found, as text, or None when it was stopped early.

    Pictures and numbers lie in `folder`. A finished demo is only read again, an interrupted one is
    continued.
    """
    if not (folder / "summary.json").exists():
        resume = (folder / "config.yaml").exists()
        config, _ = parse_pretrain(["--resume", str(folder)] if resume else ["--config", RECIPE])
        print(f"{'continuing' if resume else 'training'} in {folder}: digits, a few minutes")
        summary = pretrain(config, folder, resume=resume, command=["crate-mae", "demo"])
        if not summary.finished:
            return None
    if not (folder / "evaluation.json").exists():
        _evaluate(folder)
    return (folder / "evaluation.txt").read_text(encoding="utf-8") + _next_steps(folder)


def _evaluate(folder: Path) -> None:
    model = load_autoencoder(folder)
    digits = open_images(["digits"], split="test")
    ratio = float(load_config_values(folder)["masking"]["ratio"])
    result, names = reconstruct_source(model, digits, ratio=ratio, limit=8)
    sheet = folder / "reconstruction.png"
    reconstruction_sheet(result, sheet, names=names, overwrite=True)
    training_curves(read_metrics(folder), folder / "training.png", overwrite=True)
    rows = compare(model, *open_pair("digits"), progress=counter)
    facts = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    metrics = facts["metrics"]
    text = (
        f"\nvalidation loss {metrics['val/loss']:.4f}"
        f" (one colour: {metrics['val/mean_colour']:.4f},"
        f" each patch's own mean: {metrics['val/patch_mean']:.4f})\n"
        f"PSNR on removed patches of the pictures {result.psnr.mean():.2f} dB\n\n"
        f"{comparison_table(rows)}\n"
    )
    write_atomically(folder / "evaluation.txt", text)
    values = {"sha256": weights_hash(folder), "rows": [row.to_dict() for row in rows]}
    write_atomically(folder / "evaluation.json", json.dumps(values, indent=2) + "\n")


def _next_steps(folder: Path) -> str:
    return (
        f"\nlook at     {folder}/reconstruction.png and {folder}/training.png\n"
        f"numbers     {folder}/metrics.csv, {folder}/evaluation.json\n"
        f"weights     {folder}/weights\n"
        "next        crate-mae pretrain --config own-images --data.source imagefolder:PATH"
        " --out runs/mine\n"
    )
