"""Kernels of a training step: listed on a CPU and on a GPU; without one that is said."""

import pytest
import torch

from kernels import main


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crate"]) == 1
    assert capsys.readouterr().err.startswith("error: there is no NVIDIA GPU to time kernels on")


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_kernels_of_a_step_are_listed_longest_first(
    device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", "debug", "--batch-size", "2", "--most", "5", "--device", device]
    threads = torch.get_num_threads()
    assert main(["crate", *words]) == 0
    assert torch.get_num_threads() == threads
    title, *rows = capsys.readouterr().out.splitlines()
    assert title.startswith("crate: ")
    times = [float(row.split()[0]) for row in rows]
    assert len(times) == 5
    assert times == sorted(times, reverse=True)
    assert float(title.split()[1]) >= sum(times) * 0.999
    assert device == "cuda" or any(row.split()[-1].startswith("aten::") for row in rows)
