"""Datasets that the datasets library reads."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from source_cases import Write, labels_of, opened, picture_table

from crate_mae.sources.address import open_source
from crate_mae.sources.images import UnreadableImage, decode_image


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return tmp_path / "cache"


@pytest.mark.usefixtures("hub_cache")
def test_hugging_face_reads_a_local_folder(tmp_path: Path, pictures: list[bytes]) -> None:
    features = {
        "picture": {"_type": "Image"},
        "kind": {"_type": "ClassLabel", "names": ["cat", "dog"]},
    }
    noted = {"huggingface": json.dumps({"info": {"features": features}})}
    folder = tmp_path / "pets"
    folder.mkdir()
    table = picture_table(pictures, kind=[0, 1, 1, 0])
    pq.write_table(table.replace_schema_metadata(noted), folder / "train.parquet")
    broken = picture_table([b"no image", None], kind=[0, -1])
    pq.write_table(broken.replace_schema_metadata(noted), folder / "validation.parquet")
    source = opened(f"hf:{folder}")
    assert (source.split, source.class_names) == ("train", ("cat", "dog"))
    assert labels_of(source) == [0, 1, 1, 0]
    sample = source.load(2)
    assert (sample.name, sample.label) == ("train/000002", 1)
    assert torch.equal(sample.image, decode_image(pictures[2], "x"))
    assert source.facts(0).width == 5
    other = opened(f"hf:{folder}", split="val")
    assert (other.split, labels_of(other)) == ("validation", [0, None])
    with pytest.raises(UnreadableImage, match="not an image"):
        other.load(0)
    with pytest.raises(UnreadableImage, match="only a path"):
        other.load(1)
    assert source.fingerprint() == opened(f"hf:{folder}").fingerprint()
    assert source.fingerprint() != other.fingerprint()
    with pytest.raises(ValueError, match="its splits are train, validation"):
        open_source(f"hf:{folder}", split="test")


@pytest.mark.usefixtures("hub_cache")
def test_hugging_face_opens_files_of_its_own_folder_only(write: Write, tmp_path: Path) -> None:
    for name in ("pets/cat/1.png", "pets/dog/2.png"):
        write(name)
    source = opened(f"hf:{tmp_path / 'pets'}")
    assert source.class_names == ("cat", "dog")
    assert source.load(1).image.shape == (3, 4, 5)
    source._folders = [tmp_path / "elsewhere"]  # type: ignore[attr-defined]
    with pytest.raises(UnreadableImage, match="only a path"):
        source.load(1)


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("kind", ["files", "table"])
def test_hugging_face_fingerprints_follow_pixels(kind: str, tmp_path: Path) -> None:
    """Of images whose files stay as large as they were."""
    folder = tmp_path / "pets"
    folder.mkdir()

    def fingerprint(value: int, side: int = 5) -> str:
        shades = [np.full((side, side), value + number, np.uint8) for number in range(3)]
        images = [_bitmap(shade) for shade in shades]
        assert len({len(image) for image in images}) == 1
        if kind == "files":
            for number, image in enumerate(images):
                (folder / f"{number}.bmp").write_bytes(image)
        else:
            noted = {"huggingface": json.dumps({"info": {"features": {
                "picture": {"_type": "Image"}, "kind": {"_type": "Value", "dtype": "int64"}
            }}})}  # fmt: skip
            table = picture_table(images, kind=[0, 1, 1])
            pq.write_table(table.replace_schema_metadata(noted), folder / "train.parquet")
        source = opened(f"hf:{folder}")
        assert source.load(0).image.flatten()[0] == value, "no older copy"
        found = source.fingerprint()
        assert found == source.fingerprint()
        return found

    assert len({fingerprint(1), fingerprint(101), fingerprint(1, side=6)}) == 3


def _bitmap(values: np.ndarray) -> bytes:
    held = io.BytesIO()
    Image.fromarray(values).save(held, "BMP")
    return held.getvalue()


@pytest.mark.usefixtures("hub_cache")
def test_hugging_face_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        open_source(f"hf:{tmp_path / 'none'}")
    (tmp_path / "texts").mkdir()
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "texts" / "train.parquet")
    with pytest.raises(ValueError, match=r"no column of type Image; its columns: text \(Value\)"):
        open_source(f"hf:{tmp_path / 'texts'}")


def test_streams_are_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"hf:ann/pets\?streaming .* name parquet:FOLDER or wds"):
        open_source("hf:ann/pets?streaming")


def test_a_missing_library_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ImportError, match=r"crate-mae\[hf\]"):
        open_source("hf:anything")
