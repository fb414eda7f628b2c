"""Every file that is read, through the door by which the commands read it.

A door takes a file and gives a digest of all that was read of it. Doors with `told` belong to
formats that tell damage: a changed file is refused, or read as it was.
"""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from model_cases import digits_model
from PIL import Image
from training_runs import small_config

from crate_mae import load_model, save_model
from crate_mae.common.folder_lock import holder_of
from crate_mae.dense.basis_files import load_basis, save_basis
from crate_mae.dense.token_maps import token_map
from crate_mae.dense.token_pca import fit_token_map
from crate_mae.evaluation.extracting import extract_parts
from crate_mae.evaluation.feature_files import load_features, save_features
from crate_mae.evaluation.features import extract_features
from crate_mae.publish.card import check_card, licence_of
from crate_mae.runs.contents import read_run
from crate_mae.sources.address import open_source
from crate_mae.sources.base import ImageSource
from crate_mae.sources.images import Sample
from crate_mae.training.pretrain import pretrain
from crate_mae.training.resuming import check_checkpoint, check_resumable
from crate_mae.training.run_folder import load_settings
from crate_mae.weights.conversion import write_published
from crate_mae.weights.published import published_state, to_reference


@dataclass(frozen=True, kw_only=True)
class Door:
    """A way into the program."""

    name: str
    file: str
    """The file that is changed, below the folder of sound files."""
    read: Callable[[Path], str]
    """The digest of all that was read; the path is that of the file that was changed."""
    told: bool = False


def digest(*values: Any) -> str:
    """A digest of tensors, arrays and plain values."""
    found = hashlib.sha256()
    for value in values:
        if isinstance(value, torch.Tensor):
            found.update(f"{value.dtype} {tuple(value.shape)}".encode())
            found.update(value.detach().contiguous().view(torch.uint8).numpy().tobytes()
                         if value.numel() and value.ndim else repr(value).encode())  # fmt: skip
        else:
            found.update(repr(value).encode("utf-8", "surrogateescape"))
    return found.hexdigest()


def state(tensors: dict[str, Any]) -> str:
    """A digest of named tensors."""
    return digest(*(part for key in sorted(tensors) for part in (key, tensors[key])))


def samples(address: str) -> str:
    """A digest of every image at an address; those that cannot be read count by their number."""
    source = open_source(address)
    found = [
        (entry.image, entry.label) if isinstance(entry, Sample) else ("unreadable", None)
        for entry in source.samples()
    ]
    return digest(source.fingerprint(), *(part for pair in found for part in pair))


def weights(path: Path) -> str:
    """A digest of the model of a weights folder."""
    model = load_model(path.parent)
    return digest(state(dict(model.state_dict())), model.config.to_dict())


def checkpoint(path: Path) -> str:
    """A digest of what a resumed run takes from its checkpoint."""
    check_checkpoint(path)
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    entries = loaded["optimizer_states"][0]["state"]
    return digest(
        state(loaded["state_dict"]),
        *(part for entry in entries.values() for _, part in sorted(entry.items())),
        loaded["loops"], loaded["random"]["torch"], loaded["ImageDataModule"],
    )  # fmt: skip


def run(path: Path) -> str:
    """A digest of what a report and a resumed run read of a run folder."""
    found = read_run(path.parent)
    step = check_resumable(path.parent)
    return digest(found.config, found.data, found.records, found.summary, step)


def features(path: Path) -> str:
    """A digest of a file of features, or of a folder of parts."""
    found = load_features(path)
    return digest(found.values, found.labels, found.names, found.class_names)


def basis(path: Path) -> str:
    """A digest of a basis of tokens."""
    found = load_basis(path)
    return digest(found.mean, found.axes, found.low, found.high)


def card(path: Path) -> str:
    """A digest of what is read of a model card."""
    text = path.read_text("utf-8")
    check_card(text)
    return digest(licence_of(text))


def lock(path: Path) -> str:
    """A digest of who holds a folder."""
    return digest(str(holder_of(path.parent)))


def images(path: Path) -> str:
    """A digest of a folder of images."""
    return samples(f"imagefolder:{path.parent}")


PICTURES = ("png", "jpg", "tif", "gif", "webp", "bmp", "ppm")
DOORS = (
    Door(name="weights", file="weights/model.safetensors", read=weights, told=True),
    Door(name="weights, settings", file="weights/config.json", read=weights),
    Door(name="weights, preprocessing", file="weights/preprocess.json", read=weights),
    Door(name="published .pth", file="published.pth", told=True,
         read=lambda path: state(published_state(path))),
    Door(name="published .pth, old", file="old.pth",
         read=lambda path: state(published_state(path))),
    Door(name="published .safetensors", file="published.safetensors", told=True,
         read=lambda path: state(published_state(path))),
    Door(name="checkpoint", file="run/checkpoints/last.ckpt", read=checkpoint, told=True),
    *(Door(name=f"run, {name}", file=f"run/{name}", read=run)
      for name in ("config.yaml", "data.json", "metrics.jsonl", "summary.json", "environment.json",
                   "log.txt", "command.txt")),
    Door(name="recipe", file="recipe.yaml", read=lambda path: digest(load_settings(path))),
    Door(name="features", file="features.safetensors", read=features, told=True),
    Door(name="features, part", file="parts/part-00001.parquet", told=True,
         read=lambda path: features(path.parent)),
    Door(name="features, manifest", file="parts/_manifest.json", told=True,
         read=lambda path: features(path.parent)),
    Door(name="basis", file="basis.safetensors", read=basis, told=True),
    Door(name="card", file="README.md", read=card),
    Door(name="lock", file="run/run.lock", read=lock),
    Door(name="npz", file="images.npz", read=lambda path: samples(f"npy:{path}"), told=True),
    Door(name="npy", file="images.npy", read=lambda path: samples(f"npy:{path}")),
    Door(name="npy in a folder", file="arrays/a.npy",
         read=lambda path: samples(f"npy:{path.parent}")),
    Door(name="parquet", file="images.parquet", read=lambda path: samples(f"parquet:{path}")),
    Door(name="tar", file="images.tar", read=lambda path: samples(f"wds:{path}")),
    *(Door(name=f"image, {kind}", file=f"pictures/{kind}/0.{kind}", read=images)
      for kind in PICTURES),
)  # fmt: skip


def sound_files(folder: Path) -> Path:
    """The folder, now with one sound file for every door; the same ones each time."""
    model = digits_model()
    save_model(model, folder / "weights")
    write_published(folder / "weights", folder / "published.safetensors")
    for name, zipped in (("published.pth", True), ("old.pth", False)):
        torch.save(
            {"model": to_reference(model)}, folder / name, _use_new_zipfile_serialization=zipped
        )
    config = small_config()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(config.to_dict()))
    pretrain(config, folder / "run", stop_after=3)
    shutil.rmtree(folder / "run" / "tensorboard")
    (folder / "run" / "summary.json").write_text('{"step": 3, "metrics": {"val/loss": 1.0}}')
    about = {"host": "elsewhere", "pid": 7, "since": "2026-01-01T00:00:00+00:00", "started": 1}
    (folder / "run" / "run.lock").write_text(json.dumps(about))
    _images(folder)
    digits = open_source("digits", limit=40)
    assert isinstance(digits, ImageSource)
    save_features(
        extract_features(model, digits), folder / "features.safetensors",
        preprocess=model.preprocess, weights_hash="0" * 64,
    )  # fmt: skip
    extract_parts(model, digits, folder / "parts", part_size=20, weights_hash="0" * 64)
    pixels = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    save_basis(
        fit_token_map(token_map(model, pixels))[0], folder / "basis.safetensors", weights_hash=None
    )
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [a, b]\n---\n\n# A model\n")
    return folder


def _images(folder: Path) -> None:
    draw = np.random.default_rng(0)
    stack = draw.integers(0, 256, (6, 9, 8, 3), np.uint8)
    np.savez_compressed(folder / "images.npz", images=stack, labels=np.arange(6) % 2)
    np.save(folder / "images.npy", stack)
    (folder / "arrays").mkdir()
    np.save(folder / "arrays" / "a.npy", stack[0])
    encoded = []
    for kind in PICTURES:
        (folder / "pictures" / kind).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(stack[number]).save(folder / "pictures" / kind / f"{number}.{kind}")
    for picture in stack:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    pq.write_table(pa.table({"image": encoded, "label": [0, 1] * 3}), folder / "images.parquet",
                   write_page_checksum=True)  # fmt: skip
    with tarfile.open(folder / "images.tar", "w") as archive:
        for number, picture in enumerate(encoded):
            info = tarfile.TarInfo(f"{number}.png")
            info.size = len(picture)
            archive.addfile(info, io.BytesIO(picture))
