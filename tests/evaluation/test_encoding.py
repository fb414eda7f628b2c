"""Who reads and who computes: the features are the same, and processes only where they may be."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from model_cases import digits_model
from part_cases import BROKEN, weights_and_pictures
from source_cases import opened

from crate_mae.batches.prepared import stretches
from crate_mae.evaluation import encoding
from crate_mae.evaluation.encoding import computing_processes
from crate_mae.evaluation.extracting import extract_parts
from crate_mae.evaluation.feature_files import load_features
from crate_mae.evaluation.features import (
    FeaturePool,
    extract_all,
    extract_features,
    pooled_features,
)
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.sources.base import ImageSource


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads torch computes with, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ImageSource:
    """Pictures of two classes, some of them broken."""
    place = tmp_path_factory.mktemp("encoding")
    weights_and_pictures(place)
    return opened(f"imagefolder:{place / 'pictures'}")


def cuts_of(source: ImageSource, batch_size: int = 2) -> list[range]:
    return stretches(range(len(source)), batch_size)


def processes(
    model: CrateMAE, source: ImageSource, cuts: list[range], pool: FeaturePool = "mean"
) -> int:
    """How many are chosen for the last layer's features."""
    encode = pooled_features(model, pools=(pool,), layers=(None,))
    return computing_processes(model, source, encode, cuts)


def test_processes_give_what_one_gives(
    source: ImageSource, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, begun = digits_model(), []
    model.train()
    told = computing_processes

    def counted(*words: object) -> int:
        begun.append(told(*words))  # type: ignore[arg-type]
        return begun[-1]

    monkeypatch.setattr(encoding, "computing_processes", counted)
    heard: list[tuple[int, int]] = []
    threads(1)
    alone = extract_all(model, source, pools=("both", "tokens"), layers=(1, None), batch_size=2)
    threads(3)
    together = extract_all(
        model, source, pools=("both", "tokens"), layers=(1, None), batch_size=2,
        progress=lambda *done: heard.append(done),
    )  # fmt: skip
    assert begun == [0, 3]
    assert model.training
    assert list(alone) == list(together)
    for key, one in alone.items():
        other = together[key]
        assert torch.equal(one.values, other.values)
        assert one.labels is not None
        assert other.labels is not None
        assert torch.equal(one.labels, other.labels)
        assert (one.names, one.unreadable) == (other.names, other.unreadable)
        assert len(one.unreadable) == len(BROKEN)
    assert heard == sorted(heard)
    assert heard[-1] == (len(source), len(source))


def test_parts_are_the_same_bytes(
    source: ImageSource, threads: Callable[[int], None], tmp_path: Path
) -> None:
    for number in (1, 2):
        threads(number)
        extract_parts(digits_model(), source, tmp_path / str(number), part_size=5, batch_size=2)
    written = [
        {path.name: path.read_bytes() for path in (tmp_path / str(number)).iterdir()}
        for number in (1, 2)
    ]
    assert written[0] == written[1]
    assert load_features(tmp_path / "2").values.isfinite().all()


class Failing(CrateMAE):
    """A model that cannot be computed with."""

    fault: BaseException | None = None

    def layer_tokens(self, *words: object, **options: object) -> dict[int | None, torch.Tensor]:
        """Raise the fault, or end the process where there is none."""
        if multiprocessing.parent_process() is None:  # asked for the size of a row
            return {None: torch.zeros(1, 2, 3)}
        if self.fault is None:
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError
        raise self.fault


@pytest.mark.parametrize(
    ("fault", "expected", "words"),
    [
        (ValueError("too small"), ValueError, "^too small$"),
        (RuntimeError("no room"), RuntimeError, "^no room$"),
        (None, RuntimeError, "^a process that reads images was ended from outside.*--workers 0"),
    ],
)
def test_what_goes_wrong_in_a_process_is_raised_here(
    source: ImageSource,
    threads: Callable[[int], None],
    fault: Exception | None,
    expected: type[Exception],
    words: str,
) -> None:
    threads(2)
    model = Failing(digits_model().config)
    model.fault = fault
    assert processes(model, source, cuts_of(source)) == 2
    with pytest.raises(expected, match=words):
        extract_features(model, source, batch_size=2)
    assert not multiprocessing.active_children()


def test_processes_only_where_they_help_and_may_be(
    source: ImageSource,
    tmp_path: Path,
    threads: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, cuts = digits_model(), cuts_of(source)
    threads(4)
    assert processes(model, source, cuts) == 4
    assert processes(model, source, cuts[:4]) == 0, "they would start for nothing"
    assert processes(model, source, cuts[:5]) == 2, "two stretches for each"
    np.save(tmp_path / "arrays.npy", np.zeros((40, 8, 8, 1), np.uint8))
    in_memory = opened(f"npy:{tmp_path / 'arrays.npy'}")
    assert processes(model, in_memory, cuts_of(in_memory)) == 0, "nothing to decode"

    hook = model.encoder.register_forward_hook(lambda *_: None)
    assert processes(model, source, cuts) == 0, "this process would hear nothing"
    hook.remove()
    model.runs_elsewhere = True  # type: ignore[assignment]
    assert processes(model, source, cuts) == 0, "a runtime of its own"
    del model.runs_elsewhere
    assert processes(model, source, cuts) == 4
    assert processes(model.to("meta"), source, cuts) == 0, "not on the CPU"
    model = digits_model()

    beside: list[int] = []
    thread = threading.Thread(target=lambda: beside.append(processes(model, source, cuts)))
    thread.start()
    thread.join()
    assert beside == [0], "the main thread may hold what a copy would wait for"
    with monkeypatch.context() as patch:
        patch.setattr("sys.platform", "darwin")
        assert processes(model, source, cuts) == 0
    threads(1)
    assert processes(model, source, cuts) == 0, "one core"


def test_no_more_processes_than_memory_holds(
    source: ImageSource, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digits: 8 x 8 pixels in patches of 2, so 17 tokens of width 64 and 4 heads; batches of 2."""
    model, cuts = digits_model(), cuts_of(source)
    config = model.config
    tokens = 1 + config.num_patches
    one = 4 * 2 * tokens * (16 * config.dim + config.num_heads * tokens)
    threads(4)
    for free, expected in ((None, 0), (4 * one * 3, 3), (4 * one * 2 - 1, 0), (4 * one * 9, 4)):
        monkeypatch.setattr(encoding, "free_memory", lambda free=free: free)
        assert processes(model, source, cuts) == expected


def test_rows_fit_into_shared_memory(
    source: ImageSource, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a batch of 2 in float32, twice, for what each process has done or is doing ahead."""
    model, cuts = digits_model(), cuts_of(source)
    threads(4)
    row = 4 * model.config.dim
    for pool, values in (("mean", row), ("tokens", row * (1 + model.config.num_patches))):
        for count in (4, 3, 1):
            room = 2 * (2 * values) * 3 * count
            monkeypatch.setattr(encoding, "shared_memory", lambda room=room: room)
            chosen = processes(model, source, cuts, cast("FeaturePool", pool))
            assert chosen == (count if count > 1 else 0)
