"""A folder of parts: complete or not, whose it is, and the features that it gives."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mutations import mutated
from part_cases import SETTINGS

from crate_mae.evaluation.feature_files import load_facts, load_features, load_pair, merge_parts
from crate_mae.evaluation.feature_parts import (
    MANIFEST,
    FeatureParts,
    all_rows,
    check_parts_target,
    is_parts_folder,
)
from crate_mae.evaluation.part_files import PartFacts, PartRows, write_part
from crate_mae.evaluation.part_settings import Part

VALUES = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
BROKEN = 4
"""The image that has no row."""


def fill(parts: FeatureParts, part: Part, **changed: object) -> None:
    """Write a part as it should be, its facts changed."""
    good = [index for index in range(part.start, part.stop) if index != BROKEN]
    rows = PartRows(
        indices=good, names=[f"{i} é.png" for i in good], labels=[i % 2 for i in good],
        values=VALUES[good],
    )  # fmt: skip
    facts = PartFacts(
        settings=parts.settings.digest, number=part.number, start=part.start, stop=part.stop
    )
    broken = [(f"{BROKEN}.png\x1b", "empty")] if part.start <= BROKEN < part.stop else []
    write_part(
        parts.path(part), [rows], replace(facts, **changed), broken,  # type: ignore[arg-type]
        row_shape=(4,), labelled=True,
    )  # fmt: skip


def filled(folder: Path) -> FeatureParts:
    parts = FeatureParts.begin(folder, SETTINGS)
    for part in parts.parts:
        fill(parts, part)
    return parts


def test_a_complete_folder_gives_its_features(tmp_path: Path) -> None:
    parts = filled(tmp_path / "f")
    assert is_parts_folder(tmp_path / "f")
    assert [(p.shard, p.start, p.stop) for p in parts.parts] == [
        (0, 0, 3), (0, 3, 5), (1, 5, 8), (1, 8, 10),
    ]  # fmt: skip
    features = load_features(tmp_path / "f")
    good = [index for index in range(10) if index != BROKEN]
    assert torch.equal(features.values, VALUES[good])
    assert features.labels is not None
    assert features.labels.tolist() == [i % 2 for i in good]
    assert features.names == [f"{i} é.png" for i in good]
    assert (features.class_names, features.pool, features.layer) == (("cat", "dog"), "mean", None)
    assert features.unreadable == [(f"{BROKEN}.png\x1b", "empty")]
    facts = load_facts(tmp_path / "f")
    assert facts["shape"] == [9, 4]
    assert facts["weights_sha256"] == SETTINGS.weights_sha256
    assert sum(len(rows.names) for rows in all_rows(FeatureParts.open(tmp_path / "f"))) == 9


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "parquet"])
def test_one_file_of_all_parts(tmp_path: Path, suffix: str) -> None:
    filled(tmp_path / "f")
    out = tmp_path / f"all.{suffix}"
    merge_parts(tmp_path / "f", out)
    with pytest.raises(FileExistsError):
        merge_parts(tmp_path / "f", out)
    merge_parts(tmp_path / "f", out, overwrite=True)
    if suffix == "safetensors":
        ours, theirs = load_features(out), load_features(tmp_path / "f")
        assert torch.equal(ours.values, theirs.values)
        assert (ours.names, ours.unreadable) == (theirs.names, theirs.unreadable)
        assert load_facts(out) | {"format": ""} == load_facts(tmp_path / "f") | {"format": ""}
        # A folder and a file may be compared.
        known, unknown, _ = load_pair(out, tmp_path / "f")
        assert torch.equal(known.values, unknown.values)


def test_missing_parts_and_shards_are_named(tmp_path: Path) -> None:
    parts = filled(tmp_path)
    for number in (0, 3):
        parts.path(parts.parts[number]).unlink()
    assert [part.number for part in parts.missing()] == [0, 3]
    assert [part.number for part in parts.missing(1)] == [3]
    wanted = r"2 of 4 parts are missing of shards 0/2, 1/2 \(part-00000.parquet, part-00003.parquet"
    with pytest.raises(ValueError, match=wanted):
        load_features(tmp_path)
    with pytest.raises(ValueError, match=wanted):
        merge_parts(tmp_path, tmp_path.with_suffix(".npz"))
    assert not tmp_path.with_suffix(".npz").exists()


def test_a_damaged_part_is_missing_and_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = filled(tmp_path)
    path = parts.path(parts.parts[1])
    path.write_bytes(path.read_bytes()[:-100])
    assert [part.number for part in parts.missing()] == [1]
    assert str(path) in caplog.text


@pytest.mark.parametrize(
    "changed", [{"settings": "0" * 64}, {"number": 1}, {"start": 6, "stop": 9}]
)
def test_a_part_of_other_settings_is_refused_by_name(
    tmp_path: Path, changed: dict[str, object]
) -> None:
    parts = filled(tmp_path)
    fill(parts, parts.parts[2], **changed)
    with pytest.raises(ValueError, match=r"part-00002.parquet was made with other settings"):
        parts.missing()
    with pytest.raises(ValueError, match="other settings"):
        load_features(tmp_path)


@pytest.mark.parametrize("indices", [[3, 3], [4, 3], [2, 3], [3, 5]])
def test_rows_out_of_order_or_place_are_refused(tmp_path: Path, indices: list[int]) -> None:
    parts = filled(tmp_path)
    part = parts.parts[1]
    rows = PartRows(indices=indices, names=["a", "b"], labels=[0, 1], values=VALUES[:2])
    facts = PartFacts(settings=parts.settings.digest, number=1, start=3, stop=5)
    write_part(parts.path(part), [rows], facts, [], row_shape=(4,), labelled=True)
    with pytest.raises(ValueError, match="rows that are not its own, or out of order"):
        load_features(tmp_path)
    rows = PartRows(indices=[3, 4], names=["a", "b"], labels=[0, 2], values=VALUES[:2])
    write_part(parts.path(part), [rows], facts, [], row_shape=(4,), labelled=True)
    with pytest.raises(ValueError, match="labels without a class"):
        load_features(tmp_path)


def test_other_settings_are_refused_and_nothing_changes(tmp_path: Path) -> None:
    filled(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"--pool \(mean there, cls here\), --part-size"):
        FeatureParts.begin(tmp_path, replace(SETTINGS, pool="cls", part_size=5))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert FeatureParts.begin(tmp_path, SETTINGS).missing() == []


def test_folders_of_something_else_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds something else"):
        FeatureParts.begin(tmp_path, SETTINGS)
    with pytest.raises(FileExistsError, match="is a file"):
        check_parts_target(tmp_path / "notes.txt")
    with pytest.raises(NotADirectoryError, match="is a file"):
        check_parts_target(tmp_path / "notes.txt" / "below")
    with pytest.raises(FileNotFoundError, match="holds no parts of features"):
        load_features(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def test_what_another_process_is_writing_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / f".{MANIFEST}.0123abcd.77.partial").touch()
    assert check_parts_target(tmp_path) == tmp_path


def test_the_first_manifest_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes find an empty folder: the second to write meets the first one's manifest."""
    link = os.link

    def overtaken(source: str, target: Path) -> None:
        target.write_text(json.dumps(replace(SETTINGS, pool="cls").to_dict()))
        link(source, target)

    monkeypatch.setattr("os.link", overtaken)
    with pytest.raises(ValueError, match=r"--pool \(cls there, mean here\)"):
        FeatureParts.begin(tmp_path, SETTINGS)
    assert [entry.name for entry in tmp_path.iterdir()] == [MANIFEST]


def test_file_systems_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: str, target: Path) -> None:
        raise PermissionError(source, target)

    monkeypatch.setattr("os.link", refused)
    FeatureParts.begin(tmp_path / "f", SETTINGS)
    assert [entry.name for entry in (tmp_path / "f").iterdir()] == [MANIFEST]
    assert FeatureParts.open(tmp_path / "f").settings == SETTINGS


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": "x"}', "\x00", '{"a":' * 3000, "null"])
def test_manifests_of_others_are_refused(tmp_path: Path, text: str) -> None:
    filled(tmp_path)
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match="no manifest of ours"):
        load_features(tmp_path)


def test_a_changed_manifest_is_refused_or_read_as_it_was(tmp_path: Path) -> None:
    filled(tmp_path)
    path, whole = tmp_path / MANIFEST, load_features(tmp_path)
    sound, refused = path.read_bytes(), 0
    for number in range(200):
        path.write_bytes(mutated(sound, f"manifest {number}"))
        try:
            found = load_features(tmp_path)
        except ValueError:
            refused += 1
            continue
        assert torch.equal(found.values, whole.values)
        assert (found.names, found.pool, found.class_names) == (
            whole.names, whole.pool, whole.class_names,
        )  # fmt: skip
    assert refused > 100


def test_claims_take_no_memory(tmp_path: Path) -> None:
    """A manifest of a thousand million million images is told before a list of parts is made."""
    filled(tmp_path)
    claimed = replace(SETTINGS, images=10**15, part_size=10).to_dict()
    (tmp_path / MANIFEST).write_text(json.dumps(claimed))
    with pytest.raises(ValueError, match="larger --part-size"):
        load_features(tmp_path)


def test_unreadable_images_are_named_beside_the_parts(tmp_path: Path) -> None:
    parts = filled(tmp_path)
    (path,) = parts.write_unreadable()
    assert path.name == "_unreadable-0-of-2.csv"
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [["name", "reason"], ["4.png\\x1b", "empty"]]
    assert parts.write_unreadable(1) == []
    mended = parts.folder / "_unreadable-1-of-2.csv"
    mended.write_text("name,reason\n")
    assert parts.write_unreadable() == [path]
    assert not mended.exists(), "all images of that shard have been read since"
    assert parts.unreadable() == [("4.png\x1b", "empty")]
    assert parts.missing() == []
