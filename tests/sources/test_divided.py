"""All splits of an address are told of, with their sizes."""

from pathlib import Path

import numpy as np
from PIL import Image

from crate_mae.sources.address import open_source
from crate_mae.sources.divided import splits_of, splits_text


def test_splits_of_folders_and_digits(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        (tmp_path / split / "cats").mkdir(parents=True)
        for index in range(count):
            Image.new("L", (4, 4)).save(tmp_path / split / "cats" / f"{index}.png")
    assert splits_of(open_source(f"imagefolder:{tmp_path}")) == {"test": 1, "train": 3, "val": 2}
    assert splits_of(open_source(f"imagefolder:{tmp_path / 'train'}")) == {}
    source = open_source("digits")
    digits = splits_of(source)
    assert set(digits) == {"train", "test"}
    assert sum(digits.values()) == 1797
    np.save(tmp_path / "a.npy", np.zeros((2, 1, 4, 4), dtype=np.uint8))
    assert splits_of(open_source(f"npy:{tmp_path / 'a.npy'}")) == {}
    source.address = "hf:nobody/nothing"
    assert splits_of(source) == {}, "nothing is fetched"


def test_words() -> None:
    assert splits_text({}, None) == ""
    assert splits_text({"train": 1200, "test": 30}, "train") == (
        "splits: train 1,200, test 30; the numbers above are of train, --split names another"
    )
