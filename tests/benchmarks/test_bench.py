"""A benchmark from the command line to its file, and everything that is refused."""

import functools
import importlib.util
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import main
from crate_mae.common.peak_memory import OutOfMemoryError, PeakMemory
from crate_mae.common.text import bytes_text, time_text
from crate_mae.models.config import PRESETS, ModelConfig
from crate_mae.models.cost import model_cost
from speed import growth as growth_module
from speed.growth import growing_sizes, growth_of
from speed.harness import alternate
from speed.limit import GEMM, PRODUCTS, gemm_call, least_flops, limit_of
from speed.loading import (
    check_enough,
    generated_count,
    generated_sources,
    loading_speeds,
    named_sources,
    worker_counts,
)
from speed.result_text import growth_text, loading_text, result_text
from speed.run_bench import run_bench
from speed.settings import Settings
from speed.steps import Job, make_step
from speed.subjects import SUBJECTS, VISIBLE, Work, choose_subjects

DEBUG = PRESETS["debug"]
SMALL = ["--model", "debug", "--batch-sizes", "2", "--rounds", "2", "--threads", "1"]


@pytest.fixture(autouse=True)
def brief_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples last a millisecond: here it is told what was measured, and not how exactly."""
    monkeypatch.setattr("speed.run_bench.alternate", functools.partial(alternate, shortest=0.001))


def test_the_whole_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "found.json"
    every = ",".join(SUBJECTS)
    assert main([*SMALL, "--subjects", every, "--matmul-limit", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    result = json.loads(path.read_text("utf-8"))
    train, encode = result["cases"]
    assert set(train["subjects"]) == set(SUBJECTS) - {"timm-vit"}
    assert set(encode["subjects"]) == set(SUBJECTS) - {"crate-visible", "vitmae-published"}
    for case in (train, encode):
        for name, own in case["subjects"].items():
            assert name in printed
            assert len(own["rounds"]) == 2
            ratios = sorted(
                a / b
                for a, b in zip(own["rounds"], case["subjects"]["crate"]["rounds"], strict=True)
            )
            assert own["speedup"]["median"] == pytest.approx(sum(ratios) / 2)
        judged = {VISIBLE, *(n for n, s in SUBJECTS.items() if s.same)}
        assert set(case["limit"]["share"]) == judged & set(case["subjects"])
    assert result["settings"]["batch_sizes"] == [2]
    assert result["machine"]["threads"] == 1
    assert result["machine"]["packages"]["timm"]
    assert f"wrote {path}" in printed
    assert str(Path.home()) not in path.read_text("utf-8")
    assert main([*SMALL, "--json", str(path)]) == 1  # and it is still there
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert json.loads(path.read_text("utf-8")) == result


def test_memory_and_precision_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "found.json"
    words = ["--subjects", "crate", "--work", "train", "--memory", "--precision", "bf16-mixed"]
    assert main([*SMALL, *words, "--json", str(path)]) == 0
    (case,) = json.loads(path.read_text("utf-8"))["cases"]
    held = case["memory"]["crate"]
    assert held["peak"] > held["loaded"] > 50e6
    assert "VmHWM" in held["method"]
    assert bytes_text(held["peak"]) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--subjects", "crate,crate-refrence"], "did you mean 'crate-reference'"),
        (["--subjects", "crate,crate"], "name each subject once"),
        (["--work", "trian"], "did you mean 'train'"),
        (["--precision", "fp8"], "one or more of 32-true, bf16-mixed"),
        (["--model", "bass"], "did you mean 'base'"),
        (["--image-size", "30"], "not a multiple of patch"),
        (["--rounds", "0"], "the number of rounds must be at least 1, not 0"),
        (["--threads", "0"], "the number of threads must be at least 1, not 0"),
        (["--mask-ratio", "0.99"], "keeps no patch"),
        (["--growth", "32"], "cannot grow to 32 pixels"),
        (["--device", "cuda:99"], "cannot be used here"),
        (["--json", "/nowhere/at/all.json"], "there is no folder"),
        (["--subjects", "timm-vit", "--work", "train"], "none of timm-vit does train"),
        (["--data", "imagefolder:/nowhere", "--subjects", "crate"], "/nowhere"),
    ],
)
def test_faults_are_told(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, *words]) == 1
    assert told in capsys.readouterr().err


def test_a_batch_size_is_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--batch-sizes", "0"])
    assert "'0' are no batch sizes" in capsys.readouterr().err


def test_a_missing_library_is_a_note_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "timm" else find(name)
    )
    chosen, notes = choose_subjects(None, DEBUG)
    assert "timm-vit" not in chosen
    assert "vitmae-twin" in chosen
    assert len(notes) == 1
    assert notes[0].startswith("timm-vit left out: timm-vit needs timm, which is not installed")
    assert notes[0].endswith('pip install "crate-mae[bench]"')
    with pytest.raises(ImportError, match=r"pip install .crate-mae\[bench\]"):
        choose_subjects(["crate", "timm-vit"], DEBUG)


def test_what_is_chosen_depends_on_the_model() -> None:
    assert "vitmae-published" in choose_subjects(None, PRESETS["base"])[0]
    assert "vitmae-published" not in choose_subjects(None, DEBUG)[0]
    oblong = ModelConfig(image_size=(32, 16), dim=32, num_heads=4, decoder_num_heads=4)
    chosen, notes = choose_subjects(None, oblong)
    assert "vitmae-twin" not in chosen
    assert "square" in notes[0]
    names, _ = choose_subjects(["crate", "timm-vit"], DEBUG, compiled=True)
    assert names == ["crate", "timm-vit", "crate+compile", "timm-vit+compile"]


def test_a_compiled_subject_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def compiled(function: object) -> object:
        asked.append(function)
        return function

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: asked.append(self))
    monkeypatch.setattr(torch, "compile", compiled)
    works: tuple[Work, ...] = ("train", "encode")
    for work in works:
        job = Job(config=DEBUG, work=work, batch=2)
        make_step("crate", job)()
        make_step("crate+compile", job)()
    assert len(asked) == 2


@pytest.mark.parametrize("name", ["vitmae-twin", "vitmae-published"])
@torch.no_grad()
def test_both_vit_maes_remove_our_masks(name: str) -> None:
    """A patch that is removed cannot change what is predicted; one that is kept must."""
    job = Job(config=DEBUG, work="train", batch=2)
    images, mask = job.inputs()
    model: Any = job.module(name).eval().model
    predicted = model(images, mask).prediction
    (rows, columns), (height, width) = DEBUG.grid, DEBUG.patch_hw
    pixels = mask.view(2, 1, rows, columns)
    pixels = pixels.repeat_interleave(height, dim=2).repeat_interleave(width, dim=3)
    for where, same in ((pixels, True), (~pixels, False)):
        changed = model(torch.where(where, 1 - images, images), mask).prediction
        assert torch.equal(changed, predicted) == same


def test_the_limit_is_flops_over_rate() -> None:
    job = Job(config=DEBUG, work="train", batch=2)
    flops, one = least_flops(job), PRODUCTS * 2 * job.tokens * 32 * 32
    found = limit_of(job, {"crate": [2.0, 8.0], "vitmae-twin": [1.0, 1.0], GEMM: [1.0, 2.0]})
    assert found["seconds"]["least"] == pytest.approx(flops / one)
    assert found["seconds"]["most"] == pytest.approx(2 * flops / one)
    assert found["share"]["crate"]["most"] == pytest.approx(flops / one / 2)
    assert set(found["share"]) == {"crate"}
    assert "visible_flops" not in found
    fewer = model_cost(replace(DEBUG, mask_tokens="decoder"), batch=2, ratio=job.ratio).step
    found = limit_of(job, {"crate": [2.0], "crate-visible": [2.0], GEMM: [1.0]})
    assert found["visible_flops"] == fewer < flops
    assert found["share"]["crate-visible"]["median"] == pytest.approx(fewer / one / 2)
    assert gemm_call(job)().shape == (job.tokens, 32)


def test_sizes_grow_evenly_to_the_largest() -> None:
    job = Job(config=PRESETS["base"], work="train", batch=1)
    sizes = growing_sizes(job, 1024)
    assert sizes[0] == (224, 224)
    assert sizes[-1] == (1024, 1024)
    assert len(sizes) == 4
    assert all(side % 16 == 0 for size in sizes for side in size)
    steps = [math.log(b[0] / a[0]) for a, b in itertools.pairwise(sizes)]
    assert max(steps) < 1.2 * min(steps)
    for largest in (-5, 0, 224):
        with pytest.raises(ValueError, match=f"224x224 cannot grow to {largest} pixels"):
            growing_sizes(job, largest)


def test_growth_is_fitted_and_stops_where_memory_ends() -> None:
    def measure(subject: str, job: Job) -> PeakMemory:
        if subject == "crate-reference" and job.tokens > 200:
            raise OutOfMemoryError("no more")
        power = 2 if subject == "crate-reference" else 1
        return PeakMemory(
            peak=10**9 + 1000 * job.tokens**power, loaded=5, settled=10**9,
            seconds=(9.0, job.tokens**1.5 / 1e4), method="made up",
        )  # fmt: skip

    job = Job(config=DEBUG, work="train", batch=4)
    found = growth_of(["crate", "crate-reference"], job, largest=256, measure=measure)
    ours, other = found["subjects"]["crate"], found["subjects"]["crate-reference"]
    assert ours["memory_exponent"] == pytest.approx(1)
    assert ours["time_exponent"] == pytest.approx(1.5)
    assert other["memory_exponent_at_the_end"] == pytest.approx(2)
    assert [point["tokens"] for point in ours["points"]] == [17, 65, 257, 1025]
    assert len(other["points"]) == 2
    assert "larger left out: no more" in other["note"]
    text = growth_text(found)
    assert "memory grows with tokens^1.00" in text
    assert "no more" in text


def test_growth_leaves_out_what_would_take_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth_module, "BUDGET", 100.0)
    memory = PeakMemory(peak=3, loaded=1, settled=2, seconds=(50.0,), method="made up")
    job = Job(config=DEBUG, work="train", batch=1)
    found = growth_of(["crate"], job, largest=256, measure=lambda *_: memory)
    own = found["subjects"]["crate"]
    assert len(own["points"]) == 1
    assert "64x64 and larger left out: a step would take about 731 s" in own["note"]
    assert own["memory_exponent"] is None


def test_every_kind_of_source_is_read() -> None:
    with generated_sources(DEBUG, images=6) as sources:
        rows = loading_speeds(sources, DEBUG, batch=2, workers=[0], seconds=0.05)
        folder = Path(sources[0][1].partition(":")[2])
        assert folder.is_dir()
    assert not folder.exists()
    names = [row["source"] for row in rows]
    waiting = "imagefolder, JPEG, decoded once"
    assert names == [*(name for name, _ in sources), waiting, f"{waiting}, in whole batches"]
    assert all(row["images_per_second"] > 0 for row in rows)
    assert [row["images"] for row in rows if row["source"] != "digits"] == [6] * 6
    assert worker_counts(6) == [0, 1, 2, 4]


def test_own_data_beside_the_step_without_its_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speed.run_bench.worker_counts", lambda: [0])
    briefly = functools.partial(loading_speeds, seconds=0.05)
    monkeypatch.setattr("speed.run_bench.loading_speeds", briefly)
    path = tmp_path / "found.json"
    with generated_sources(DEBUG, images=4) as sources:
        words = ["--data", sources[0][1], "--data", sources[1][1], "--data", sources[3][1]]
        assert main([*SMALL, "--subjects", "crate", *words, "--json", str(path)]) == 0
        folder = sources[0][1].partition(":")[2]
    result: dict[str, Any] = json.loads(path.read_text("utf-8"))
    names = ["imagefolder 1", "imagefolder 2", "npy"]
    assert result["settings"]["data"] == names == [n for n, _ in named_sources(
        ["imagefolder:a", "imagefolder:b", "npy:c"]
    )]  # fmt: skip
    assert folder not in path.read_text("utf-8")
    printed = capsys.readouterr().out
    assert "a training step of crate takes" in printed
    assert "imagefolder 1, decoded once" in printed


def test_a_result_is_kept_part_by_part() -> None:
    seen: list[int] = []
    settings = Settings(
        config=DEBUG, model="debug", subjects=("crate",), batch_sizes=(1, 2), rounds=1
    )
    before = torch.get_num_threads()
    result = run_bench(settings, keep=lambda part: seen.append(len(part["cases"])))
    assert seen == [1, 2, 3, 4]
    assert json.loads(json.dumps(result)) == result
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("when", ["made", "first run", "later"])
def test_a_subject_without_memory_is_left_out_with_a_note(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(name: str, job: Job) -> Callable[[], object]:
        step, calls = make_step(name, job), itertools.count()
        if name != "crate-reference":
            return step

        def fail() -> object:
            if next(calls) >= (0 if when == "first run" else 2):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            return step()

        if when == "made":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return fail

    monkeypatch.setattr("speed.run_bench.make_step", without)
    settings = Settings(
        config=DEBUG, model="debug", subjects=("crate", "crate-reference"), works=("encode",),
        batch_sizes=(2,), rounds=2, limit=True,
    )  # fmt: skip
    result = run_bench(settings)
    (case,) = result["cases"]
    assert list(case["subjects"]) == ["crate"]
    assert list(case["limit"]["share"]) == ["crate"]
    (note,) = result["notes"]
    assert note.startswith("encode, batch 2, 32-true: crate-reference left out: memory ran out")
    assert note in result_text(result)


def test_nothing_that_fits_is_still_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: object) -> object:
        raise MemoryError

    monkeypatch.setattr("speed.run_bench.make_step", without)
    held = {"peak": 3 * 2**30, "above_loaded": 2**30}
    monkeypatch.setattr("speed.run_bench._memory", lambda *_: {"crate": held})
    settings = Settings(config=DEBUG, subjects=("crate",), works=("train",), memory=True)
    text = result_text(run_bench(settings))
    assert "crate left out" in text
    assert "3 GiB" in text  # alone, in a process of its own, it fits


def test_other_errors_of_a_subject_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> object:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr("speed.run_bench.make_step", lambda *_: broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run_bench(Settings(config=DEBUG, subjects=("crate",), rounds=1))


def test_generated_sources_fill_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (generated_count(32), generated_count(1024)) == (512, 2048)
    monkeypatch.setattr("speed.loading.IMAGES", 4)
    with generated_sources(DEBUG, images=11) as sources:
        check_enough([address for _, address in sources], 11)
        with pytest.raises(ValueError, match="--batch-sizes"):
            check_enough([sources[0][1]], 12)
        rows = loading_speeds(sources[:4], DEBUG, batch=11, workers=[0], seconds=0.01)
    assert [row["images"] for row in rows] == [11] * 6
    assert all(row["images_per_second"] > 0 for row in rows)


def test_digits_are_left_out_where_they_fill_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[list[str]] = []

    def speeds(sources: list[tuple[str, str]], *_: object, **__: object) -> list[object]:
        read.append([name for name, _ in sources])
        return []

    monkeypatch.setattr("speed.run_bench.loading_speeds", speeds)
    monkeypatch.setattr("speed.run_bench.generated_count", lambda _: 2)
    monkeypatch.setattr("speed.run_bench._case", lambda *_: ({"work": "", "batch": 1}, []))
    for batch in (1797, 1798):
        run_bench(Settings(config=DEBUG, batch_sizes=(batch,), loading=True))
    assert ["digits" in names for names in read] == [True, False]


def test_too_few_images_are_told_before_anything_is_timed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speed.run_bench.alternate", None)
    with generated_sources(DEBUG, images=3) as sources:
        words = ["--data", sources[3][1], "--subjects", "crate", "--batch-sizes", "4"]
        assert main(["--model", "debug", *words]) == 1
    told = capsys.readouterr().err
    assert "3 images, fewer than one batch of 4" in told
    assert "--batch-sizes" in told


def test_a_source_that_fails_is_a_note_and_the_rest_is_told(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    bad = tmp_path / "gone"
    with generated_sources(DEBUG, images=4) as sources:
        asked = [sources[3], ("imagefolder", f"imagefolder:{bad}")]
        rows = loading_speeds(asked, DEBUG, batch=2, workers=[0], seconds=0.01)
    assert rows[0]["images_per_second"] > 0
    assert rows[1]["images_per_second"] is None
    assert str(bad) in caplog.text
    assert str(bad) not in json.dumps(rows)
    text = loading_text({"batch": 2, "step_images_per_second": 5.0, "rows": rows})
    assert "imagefolder, 0 workers: could not be read (FileNotFoundError)" in text


def test_own_data_that_cannot_be_read_end_in_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speed.run_bench.worker_counts", lambda: [0])
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"torn")
    words = ["--data", f"imagefolder:{tmp_path}", "--subjects", "crate", "--batch-sizes", "1"]
    assert main([*SMALL[:2], *words, "--rounds", "1"]) == 1
    told = capsys.readouterr()
    assert "a training step of crate takes" in told.out
    assert told.err.endswith("error: could not be read: imagefolder, imagefolder, decoded once, "
                             "imagefolder, decoded once, in whole batches\n")  # fmt: skip


def test_what_does_not_fit_decoded_is_not_told_as_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speed.loading.CACHE", 0.0)
    with generated_sources(DEBUG, images=4) as sources:
        rows = loading_speeds(sources[:1], DEBUG, batch=2, workers=[0], seconds=0.01)
    assert rows[1]["images_per_second"] is None
    assert "decoded images take more than" in rows[1]["note"]


def test_what_was_measured_is_printed_whatever_ends_the_bench(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> object:
        raise OSError("the disk is full")

    monkeypatch.setattr("speed.run_bench._loading", broken)
    words = ["--subjects", "crate", "--work", "encode", "--loading"]
    assert main([*SMALL, *words]) == 1
    told = capsys.readouterr()
    assert "encode, batch 2 (34 tokens)" in told.out
    assert "the disk is full" in told.err


@pytest.mark.parametrize(
    ("device", "named"), [("cpu", None), ("cuda", "one"), ("cuda:0", "one"), ("cuda:1", "two")]
)
def test_the_gpu_that_is_named_is_the_one_that_was_used(device: str, named: str | None) -> None:
    machine = {"processor": "P", "threads": 1, "torch": "2", "devices": ["GPU one", "GPU two"]}
    settings = Settings(config=DEBUG, device=device).to_dict()
    result = {"machine": machine, "settings": settings, "cases": [], "subjects": {"crate": ""}}
    first = result_text({**result, "notes": []}).splitlines()[0]
    assert [name for name in ("one", "two") if f"GPU {name}" in first] == ([named] if named else [])


def test_numbers_are_readable() -> None:
    assert [time_text(s) for s in (0.0012345, 0.9996, 12.3456)] == ["1.23 ms", "1 s", "12.3 s"]
    sizes = [None, 512, 2**20 - 1, 5_400_000, 1023 * 2**20, 2_345_000_000, 1200 * 2**30]
    assert [bytes_text(n) for n in sizes] == [
        "-", "0.5 KiB", "1 MiB", "5.15 MiB", "1,023 MiB", "2.18 GiB", "1,200 GiB",
    ]  # fmt: skip
