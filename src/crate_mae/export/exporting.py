"""A model exported: written, run in its own runtime on real images, kept only if it is equal."""

import copy
import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from crate_mae.batches.broken import readable
from crate_mae.batches.transforms import prepare
from crate_mae.common.files import check_new_folder, file_hash
from crate_mae.export.exported_facts import FACTS, file_hashes
from crate_mae.export.form import Classify, Encode, Reconstruct, What, export_form
from crate_mae.export.quantise import quantise_onnx
from crate_mae.export.runtimes import FORMATS, Format, check_installed
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.classifier import CrateClassifier
from crate_mae.models.config import Preprocess
from crate_mae.models.crate_encoder import CrateEncoder
from crate_mae.models.masks import draw_mask, num_kept
from crate_mae.sources.base import ImageSource
from crate_mae.sources.images import to_channels
from crate_mae.sources.photographs import photograph_squares
from crate_mae.weights.weights_folder import load_model, replacing_folder, weights_hash

TOLERANCE = 1e-4
"""How far outputs of the runtime may lie from ours in float64, absolutely."""
CHECKED_IMAGES = 8
"""How many images the outputs are compared on, unless more are asked for."""
FEWEST_IMAGES = 3
"""One alone and two together: fewer could not tell that the file takes any number of images."""
AT_A_TIME = 32


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What became of an export."""

    folder: Path
    file: Path
    difference: float
    """The largest between the runtime's outputs and ours in float64, on real images."""
    images: int
    """How many images were compared."""


def export_model(
    weights: str | Path,
    folder: str | Path,
    *,
    format: str,
    what: What = "encode",
    mask_ratio: float = 0.75,
    int8: bool = False,
    images: ImageSource | None = None,
    limit: int = CHECKED_IMAGES,
) -> Exported:
    """What became of writing a model into a new folder, for a program that has no PyTorch.

    The file takes any number of images of the model's size, prepared as `export.json` beside it
    says; "reconstruct" also takes masks, which keep as many patches as `mask_ratio` leaves. ISTA is
    written as the linear map that it is. The result is run in the format's own runtime on the first
    `limit` readable `images` (squares of two photographs, 12 at most) in batches of several sizes
    and compared with PyTorch in float64; one or two images are joined by their mirror images.

    `int8` (ONNX alone) rounds matrices to eight bits, with the identity of ISTA kept outside: its
    difference is told and not judged, as it says little of what features are worth; `probe` does.

    Raises ValueError for a task that the model cannot do, for a format that is not known and where
    no image can be read,
    ModuleNotFoundError for packages that are missing, FileExistsError for a folder with content,
    and RuntimeError where the runtime's outputs lie more than 1e-4 from ours: nothing stays then.
    """
    check_installed(format)
    if int8 and format != "onnx":
        raise ValueError(f"int8 is for format onnx, not {format}")
    if limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    target = check_new_folder(folder)
    model = load_model(weights)
    kept = _kept(model, mask_ratio) if what == "reconstruct" else None
    ours = _task(model, what, kept)
    inputs, names = _real_inputs(model, what, mask_ratio, images, limit)
    chosen = FORMATS[format]
    with replacing_folder(target) as fresh:
        form = _task(export_form(model, identity_outside=int8), what, kept)
        file = fresh / chosen.file
        chosen.write(form.eval(), [value[:2] for value in inputs], names, file)
        if int8:
            quantise_onnx(file)
        difference = _difference(ours, chosen, file, inputs)
        if not int8 and not difference <= TOLERANCE:
            raise RuntimeError(
                f"{format} gives other numbers than PyTorch: {difference:.1e} apart, more than"
                f" {TOLERANCE:.0e}; nothing was written"
            )
        facts = {
            "format": format,
            "what": what,
            "int8": int8,
            "inputs": {
                name: {"shape": ["batch", *value.shape[1:]], "dtype": str(value.dtype)[6:]}
                for name, value in zip(names, inputs, strict=True)
            },
            "kept_patches": kept,
            "classes": list(getattr(model, "class_names", None) or []) or None,
            "preprocess": _preprocess_facts(model.preprocess),
            "weights_sha256": weights_hash(weights),
            "largest_difference": difference,
            "compared_images": len(inputs[0]),
            "files": file_hashes(fresh),
        }
        (fresh / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return Exported(
        folder=target,
        file=target / chosen.file,
        difference=difference,
        images=len(inputs[0]),
    )


def _preprocess_facts(preprocess: Preprocess) -> dict[str, Any]:
    return {
        **preprocess.to_dict(),
        "scale": "pixels to [0, 1]",
        "resize": "bicubic with antialiasing until the image just covers the size, then the centre",
    }


def _kept(model: CrateMAE | CrateEncoder, mask_ratio: float) -> int:
    return num_kept(model.config.num_patches, mask_ratio)


def _task(model: Any, what: What, kept: int | None) -> nn.Module:
    """The module of a task; ValueError where the model cannot do it."""
    if what not in get_args(What):
        raise ValueError(f"what must be one of {', '.join(get_args(What))}, not {what!r}")
    if what == "encode":
        return Encode(model)
    if what == "classify":
        if not isinstance(model, CrateClassifier):
            raise ValueError("these weights hold no classifier: fine-tune one, or export encode")
        return Classify(model)
    if not isinstance(model, CrateMAE) or kept is None:
        raise ValueError("there is no decoder to reconstruct with: export encode, or classify")
    return Reconstruct(model, kept)


def _real_inputs(
    model: CrateMAE | CrateEncoder,
    what: What,
    mask_ratio: float,
    images: ImageSource | None,
    limit: int,
) -> tuple[list[Tensor], list[str]]:
    channels = model.config.channels
    if images is None and channels not in (1, 3):
        raise ValueError(f"there are no photographs of {channels} channels: give images (--images)")
    source = photograph_squares() if images is None else images
    samples = islice(readable(source.samples(), []), limit)
    found = [to_channels(sample.image, channels) for sample in samples]
    if not found:
        raise ValueError("no image can be read to compare on: give others")
    while len(found) < FEWEST_IMAGES:
        found.append(found[-1].flip(-1))
    batch = prepare(found, model.preprocess)
    if what != "reconstruct":
        return [batch], ["images"]
    generator = torch.Generator().manual_seed(0)
    mask = draw_mask("random", model.config.grid, mask_ratio, generator, batch=len(batch))
    return [batch, mask], ["images", "mask"]


def _difference(ours: nn.Module, chosen: Format, file: Path, inputs: list[Tensor]) -> float:
    """The largest difference over a single image and all others in batches; infinite for NaN.

    It is from our task in float64: in float32 both sides round, and differ by the sum.
    """
    run, exact = chosen.run(file), copy.deepcopy(ours).eval().double()
    largest = 0.0
    starts = range(1, len(inputs[0]), AT_A_TIME)
    for part in (slice(0, 1), *(slice(start, start + AT_A_TIME) for start in starts)):
        some = [value[part].contiguous() for value in inputs]
        wide = [value.double() if value.is_floating_point() else value for value in some]
        with torch.inference_mode():
            expected = exact(*wide)
        apart = float((run(some).double() - expected).abs().max())
        largest = max(largest, apart if apart == apart else float("inf"))
    return largest


def describe_export(exported: Exported) -> str:
    """The export in two lines of text."""
    size = exported.file.stat().st_size + sum(
        path.stat().st_size for path in exported.folder.glob("*.bin")
    )
    return (
        f"wrote {exported.file} ({size:,} bytes, SHA-256 {file_hash(exported.file)[:12]})\n"
        f"largest difference from PyTorch {exported.difference:.1e}, on {exported.images} images"
    )
