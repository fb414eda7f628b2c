"""Kernels of a training step: refused without a GPU, listed with one."""

import pytest
import torch

from kernels import main


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crate"]) == 1
    assert capsys.readouterr().err.startswith("error: kernels are timed on an NVIDIA GPU")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_kernels_of_a_step_are_listed_longest_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crate", "--model", "debug", "--batch-size", "2", "--most", "5"]) == 0
    title, *rows = capsys.readouterr().out.splitlines()
    assert title.startswith("crate: ")
    times = [float(row.split()[0]) for row in rows]
    assert len(times) == 5
    assert times == sorted(times, reverse=True)
