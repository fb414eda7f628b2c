"""Parts of features: those that one pass in memory gives, whoever computes them and in what order.

Stopped at any point, they go on where they were, in constant memory.
"""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
import torch
from model_cases import digits_model
from part_cases import BROKEN, weights_and_pictures
from processes import PATIENCE, python
from source_cases import opened

from crate_mae import load_model
from crate_mae.evaluation.extracting import (
    Extraction,
    PartExtractor,
    begin_parts,
    extract_parts,
    state_digest,
)
from crate_mae.evaluation.feature_files import load_features
from crate_mae.evaluation.feature_parts import FeatureParts
from crate_mae.evaluation.features import FeaturePool, Features, extract_features
from crate_mae.sources.base import ImageSource, subset

OTHER_TYPES = (torch.bfloat16, torch.float16, torch.float64)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights/ and pictures/."""
    return weights_and_pictures(tmp_path_factory.mktemp("extract"))


@pytest.fixture
def source(place: Path) -> ImageSource:
    return opened(f"imagefolder:{place / 'pictures'}")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def check_same(found: Features, expected: Features) -> None:
    assert torch.equal(found.values, expected.values)
    assert found.labels is not None
    assert expected.labels is not None
    assert torch.equal(found.labels, expected.labels)
    assert (found.names, found.class_names) == (expected.names, expected.class_names)
    assert (found.pool, found.layer) == (expected.pool, expected.layer)
    assert found.unreadable == expected.unreadable


@pytest.mark.parametrize(("pool", "layer"), [("mean", None), ("both", 1), ("tokens", -1)])
@pytest.mark.parametrize("workers", [0, 2])
def test_parts_hold_what_one_pass_gives(
    source: ImageSource, tmp_path: Path, pool: FeaturePool, layer: int | None, workers: int
) -> None:
    model, heard = digits_model(), list[tuple[int, int]]()
    model.train()
    parts = extract_parts(
        model, source, tmp_path / "f", pool=pool, layer=layer, part_size=4, batch_size=2,
        workers=workers, weights_hash="w", progress=lambda *told: heard.append(told),
    )  # fmt: skip
    whole = extract_features(model, source, pool=pool, layer=layer, batch_size=2, workers=0)
    check_same(load_features(tmp_path / "f"), whole)
    assert [parts.facts(part).rows for part in parts.parts] == [3, 4, 0, 4, 4, 2]
    assert heard[-1] == (22, 22)
    assert heard == sorted(heard)
    assert (tmp_path / "f" / "_unreadable.csv").read_text().count("\n") == 1 + len(BROKEN)
    assert model.training
    assert parts.settings.weights_sha256 == "w"


def test_shards_in_any_order_make_the_same_parts(source: ImageSource, tmp_path: Path) -> None:
    def shard(folder: str, number: int) -> FeatureParts:
        return extract_parts(
            digits_model(), source, tmp_path / folder, part_size=3, shard=(number, 3), batch_size=3
        )

    for number in (2, 0, 1):
        missing = shard("out of order", number).missing()
        assert {part.shard for part in missing} == {2: {0, 1}, 0: {1}, 1: set()}[number]
    for number in range(3):
        shard("in order", number)
    assert contents(tmp_path / "in order") == contents(tmp_path / "out of order")
    whole = extract_features(digits_model(), source, batch_size=3)
    found = load_features(tmp_path / "in order")
    torch.testing.assert_close(found.values, whole.values)
    assert found.names == whole.names
    assert found.unreadable == whole.unreadable


def test_shards_at_once_do_not_tread_on_each_other(source: ImageSource, tmp_path: Path) -> None:
    """Four processes begin one folder at the same time, two of them with the same shard."""

    def shard(number: int) -> None:
        torch.set_num_threads(1)
        extract_parts(
            digits_model(), source, tmp_path / "f", part_size=2, shard=(number, 3), batch_size=2
        )

    jobs = [get_context("fork").Process(target=shard, args=(number,)) for number in (0, 1, 2, 2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(PATIENCE)
    assert [job.exitcode for job in jobs] == [0] * 4
    found = load_features(tmp_path / "f")
    whole = extract_features(digits_model(), source)
    torch.testing.assert_close(found.values, whole.values)
    assert found.names == whole.names
    assert [name for name in contents(tmp_path / "f") if name.startswith(".")] == []


def test_missing_parts_alone_are_computed(source: ImageSource, tmp_path: Path) -> None:
    def run() -> FeatureParts:
        return extract_parts(digits_model(), source, tmp_path, part_size=5, batch_size=5)

    parts = run()
    whole = contents(tmp_path)
    parts.path(parts.parts[1]).unlink()
    kept = parts.path(parts.parts[0])
    os.utime(kept, (1, 1))
    damaged = parts.path(parts.parts[3])
    damaged.write_bytes(damaged.read_bytes()[:-1])
    run()
    assert contents(tmp_path) == whole
    assert kept.stat().st_mtime == 1
    # What is not said is as it was: the shards of a folder need not be named to complete it.
    parts.path(parts.parts[2]).unlink()
    extract_parts(digits_model(), source, tmp_path, batch_size=5)
    assert contents(tmp_path) == whole


def test_images_mended_since_are_read_when_the_extraction_is_called_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Their parts alone are made again; others keep their bytes and their time."""
    place = weights_and_pictures(tmp_path)
    pictures, folder = place / "pictures", tmp_path / "f"
    whole = (pictures / "a" / "00.png").read_bytes()
    for number in BROKEN[:2]:  # as an interrupted copy leaves them: of their size, but empty
        (pictures / "a" / f"{number:02d}.png").write_bytes(bytes(len(whole)))

    def run(shard: tuple[int, int]) -> list[str]:
        source = opened(f"imagefolder:{pictures}")
        parts = extract_parts(
            digits_model(), source, folder, part_size=4, batch_size=4, shard=shard
        )
        return [name for name, _ in parts.unreadable()]

    run((0, 2))
    assert len(run((1, 2))) == len(BROKEN)
    for path in folder.glob("part*"):
        os.utime(path, (1, 1))
    (pictures / "a" / "03.png").write_bytes(whole)
    assert run((1, 2)) == [f"a/{number:02d}.png" for number in BROKEN], "of another shard"
    assert caplog.messages == []
    assert run((0, 2)) == [f"a/{number:02d}.png" for number in BROKEN[1:]]
    assert [path.name for path in sorted(folder.glob("part*")) if path.stat().st_mtime > 1] == [
        "part-00000.parquet"
    ]
    (told,) = caplog.messages
    assert "part-00000.parquet is made again: 1 of its images could not be read" in told
    assert "such as a/03.png" in told
    found = load_features(folder)
    torch.testing.assert_close(
        found.values, extract_features(digits_model(), opened(f"imagefolder:{pictures}")).values
    )
    # A file of another size is another image to the fingerprint: told, with what to do.
    (pictures / "a" / "08.png").write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match=r"images \(.*as after mending one: another folder"):
        run((0, 2))


def test_other_settings_are_refused_by_name(source: ImageSource, tmp_path: Path) -> None:
    extract_parts(digits_model(), source, tmp_path, part_size=5, weights_hash="w")
    before = contents(tmp_path)
    for change, message in (
        ({"weights_hash": "v"}, "weights"),
        ({"pool": "cls"}, "--pool"),
        ({"layer": 1}, "--after"),
        ({"part_size": 6}, "--part-size"),
        ({"shard": (0, 2)}, "number of shards"),
    ):
        given: dict[str, Any] = {"part_size": 5, "weights_hash": "w", **change}
        with pytest.raises(ValueError, match=f"with other settings: {message}"):
            extract_parts(digits_model(), source, tmp_path, **given)
    fewer = subset(source, range(21))
    with pytest.raises(ValueError, match="images"):
        extract_parts(digits_model(), fewer, tmp_path, part_size=5, weights_hash="w")
    assert contents(tmp_path) == before


def test_parts_of_another_model_are_refused_without_a_given_hash(
    source: ImageSource, tmp_path: Path
) -> None:
    """Another seed, one other value in the last tensor: each is another model."""
    extract_parts(digits_model(), source, tmp_path, part_size=5)
    before = contents(tmp_path)
    one_value = digits_model()
    with torch.no_grad():
        list(one_value.parameters())[-1].view(-1)[-1] += 1e-3
    for other in (digits_model().untrained(7), one_value):
        with pytest.raises(ValueError, match="with other settings: weights"):
            extract_parts(other, source, tmp_path, part_size=5)
    assert contents(tmp_path) == before
    extract_parts(digits_model(), source, tmp_path, part_size=5)
    assert contents(tmp_path) == before, "the same model goes on"


def test_what_a_digest_of_a_model_depends_on() -> None:
    """Also what no tensor shows, and types that numpy does not know; not the mode."""
    model = digits_model()
    digest = state_digest(model)
    assert digest == state_digest(digits_model().eval())
    assert digest.startswith("state:")
    assert len({digest, *(state_digest(digits_model().to(t)) for t in OTHER_TYPES)}) == 4
    other = digits_model()
    other.config = replace(other.config, sparsity=other.config.sparsity / 2)
    assert digest != state_digest(other)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pool": "max"}, "pool must be one of"),
        ({"layer": 9}, "do not exist"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"part_size": 0}, "part_size must be"),
        ({"shard": (3, 3)}, "numbered from 0, so that the last of 3 is 2/3"),
        ({"shard": (0, 0)}, "does not exist"),
        ({"shard": (0, 23)}, "23 shards are more than the 22 images"),
    ],
)
def test_wrong_words_leave_no_folder(
    source: ImageSource, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        extract_parts(digits_model(), source, tmp_path / "f", **given)
    assert not (tmp_path / "f").exists()


def test_what_any_process_can_open(place: Path, tmp_path: Path) -> None:
    wanted = Extraction(
        weights=str(place / "weights"), images=(f"imagefolder:{place / 'pictures'}",), limit=9,
        pool="cls", image_size=(12, 12), batch_size=4,
    )  # fmt: skip
    extractor = wanted.open("cpu")
    assert isinstance(extractor, PartExtractor)
    parts, missing = begin_parts(extractor, tmp_path / "f", part_size=4)
    assert [facts.number for facts in extractor.write(parts, missing[::-1])] == [2, 1, 0]
    model = load_model(place / "weights")
    model.preprocess = extractor.model.preprocess
    assert model.preprocess.size == (12, 12)
    whole = extract_features(model, extractor.source, pool="cls", batch_size=4)
    check_same(load_features(tmp_path / "f"), whole)


def test_a_killed_process_loses_no_part_and_doubles_none(place: Path, tmp_path: Path) -> None:
    """Killed with parts done and one half written; the same words complete it, bit for bit."""
    words = [
        "extract", str(place / "weights"), f"imagefolder:{place / 'pictures'}", "--part-size", "2",
        "--batch-size", "1", "--workers", "0", "--device", "cpu", "--out",
    ]  # fmt: skip
    code = (
        "import sys, time\n"
        "from crate_mae.batches import prepared\n"
        "from crate_mae.cli import main\n"
        "read = prepared.read_stretch\n"
        "def slow(*words):\n"
        "    time.sleep(0.2)\n"
        "    return read(*words)\n"
        "prepared.read_stretch = slow\n"
        f"main({[*words, str(tmp_path / 'killed')]!r})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    second = tmp_path / "killed" / "part-00002.parquet"
    until = monotonic() + PATIENCE
    while not second.exists() and process.poll() is None and monotonic() < until:
        sleep(0.01)
    sleep(0.3)  # into the next part
    process.send_signal(signal.SIGKILL)
    assert process.wait(PATIENCE) == -signal.SIGKILL
    parts = FeatureParts.open(tmp_path / "killed")
    assert 3 <= len(parts.parts) - len(parts.missing()) < len(parts.parts)
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("part*")}
    from crate_mae.cli import main

    assert main([*words, str(tmp_path / "killed")]) == 0
    assert main([*words, str(tmp_path / "whole")]) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    for name, before in done.items():
        assert (tmp_path / "killed" / name).stat().st_mtime_ns == before


MEMORY = """
import resource, sys
import torch
from crate_mae.evaluation.extracting import extract_parts
from crate_mae.models.autoencoder import build_model
from crate_mae.models.config import Preprocess
from crate_mae.sources.base import ImageSource
from crate_mae.sources.images import ImageFacts, Sample

class Made(ImageSource):
    def __init__(self, count):
        self.address, self.split, self.class_names, self.count = "made", None, None, count
    def __len__(self): return self.count
    def load(self, index):
        return Sample(image=torch.full((3, 32, 32), index % 256, dtype=torch.uint8),
                      label=None, name=self.name(index))
    def name(self, index): return f"{index}.png"
    def label(self, index): return None
    def facts(self, index): return ImageFacts("RGB", 32, 32)

model = build_model("debug", image_size=32, patch_size=4, depth=1, dim=128, num_heads=2)
model.preprocess = Preprocess(size=(32, 32))
def peak(count, folder):
    extract_parts(model, Made(count), folder, pool="tokens", part_size=400, batch_size=20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
few, many = peak(400, sys.argv[1] + "/few"), peak(4000, sys.argv[1] + "/many")
print(many - few)
"""


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    """4,000 images of 65 tokens of 128 features are 127 MiB; 400 have been through before."""
    code = f"import sys; sys.argv = ['', {str(tmp_path)!r}]\n{MEMORY}"
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert sum(p.stat().st_size for p in (tmp_path / "many").iterdir()) > 126 << 20
    assert int(done.stdout) < 26 * 1024, "KiB"
