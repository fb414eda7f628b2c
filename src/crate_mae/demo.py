"""The first ten minutes: pre-train on handwritten digits, measure, and tell it all on one page."""

import json
from pathlib import Path

from crate_mae.figures.training import training_curves
from crate_mae.progress import counter
from crate_mae.report.page import write_report
from crate_mae.training.parse import parse_pretrain
from crate_mae.training.records import read_metrics
from crate_mae.training.run import pretrain

RECIPE = "digits"


def run_demo(folder: Path) -> str | None:
    """What the demo found, as text, or None when it was stopped early.

    Pictures and numbers lie in `folder`, and `report.html` tells them all. A finished demo is only
    read again, an interrupted one is continued. Raises what `pretrain` and `write_report` raise,
    and RuntimeError when the report could not measure the digits.
    """
    if not (folder / "summary.json").exists():
        resume = (folder / "config.yaml").exists()
        config, _ = parse_pretrain(["--resume", str(folder)] if resume else ["--config", RECIPE])
        print(f"{'continuing' if resume else 'training'} in {folder}: digits, a few minutes")
        summary = pretrain(config, folder, resume=resume, command=["crate-mae", "demo"])
        if not summary.finished:
            return None
    training_curves(read_metrics(folder), folder / "training.png", overwrite=True)
    report = write_report(folder, progress=counter)
    if report.left_out:
        raise RuntimeError(f"{report.path} is not complete: {' '.join(report.left_out)}")
    return _findings(folder) + _next_steps(folder, report.path)


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


def _next_steps(folder: Path, page: Path) -> str:
    return (
        f"\nopen        {page}: everything on one page, with explanations\n"
        f"look at     {folder}/reconstruction.png, {folder}/training.png, {folder}/analysis\n"
        f"numbers     {folder}/metrics.csv, {folder}/evaluation.json\n"
        f"weights     {folder}/weights\n"
        "next        crate-mae pretrain --config own-images --data.source imagefolder:PATH"
        " --out runs/mine\n"
    )
