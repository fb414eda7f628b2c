"""The quality matrix: its jobs, the pool that runs them, the tables made of what is there."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from processes import FORKS, PATIENCE, ForkedPopen
from torch import Tensor

import pool
from altered import ALTERATIONS, alter
from altered import main as altered
from crate_mae import build_model
from crate_mae.cli import main as command
from crate_mae.common import peak_memory
from crate_mae.evaluation.backbones import build_autoencoder
from crate_mae.models import autoencoder, encoder
from crate_mae.models.config import PRESETS, ModelConfig
from crate_mae.models.ista import Synthesis
from crate_mae.models.layers import DecoderLayer, EncoderLayer
from crate_mae.models.masks import num_kept
from crate_mae.training.config import OptimConfig, PretrainConfig
from crate_mae.training.parse import parse_finetune, parse_pretrain
from matrix import (
    Job,
    chosen_rate,
    compared_folder,
    jobs_of,
    load_matrix,
    search_folder,
    superseded,
)
from pool import run_jobs
from quality import HERE, main
from quality import _extends as extends
from quality import _wanted as wanted
from quality_tables import altered_names, as_markdown, comparable_losses
from step_times import job_of, timed_steps
from tabulate_quality import flops_per_image_of, with_earlier

SOURCE = "parquet:somewhere"


def job(name: str, folder: Path, code: str = "", *, needs: tuple[str, ...] = ()) -> Job:
    """A job that runs Python code and then makes its file."""
    outcome = folder / f"{name}.done"
    whole = f"{code}\nfrom pathlib import Path\nPath({str(outcome)!r}).touch()"
    return Job(
        name=name, outcome=outcome, command=lambda: [sys.executable, "-c", whole], needs=needs
    )


# -- the pool ---------------------------------------------------------------------------------


def test_needs_come_first_and_what_is_done_is_not_run_again(tmp_path: Path) -> None:
    note = f"open({str(tmp_path / 'order')!r}, 'a').write"
    jobs = [
        job("late", tmp_path, f"{note}('late ')", needs=("early",)),
        job("early", tmp_path, f"{note}('early ')"),
    ]
    first = run_jobs(jobs, workers=2, threads=1, logs=tmp_path / "logs", poll=0.01)
    assert sorted(first.done) == ["early", "late"]
    assert (tmp_path / "order").read_text("utf-8") == "early late "
    again = run_jobs(jobs, workers=2, threads=1, logs=tmp_path / "logs", poll=0.01)
    assert sorted(again.done) == ["early", "late"]
    assert (tmp_path / "order").read_text("utf-8") == "early late "


def test_a_failure_takes_its_followers_along_and_leaves_the_others(tmp_path: Path) -> None:
    jobs = [
        job("bad", tmp_path, "raise SystemExit('no such thing')"),
        job("follower", tmp_path, needs=("bad",)),
        job("its follower", tmp_path, needs=("follower",)),
        job("other", tmp_path),
    ]
    outcome = run_jobs(jobs, workers=1, threads=1, logs=tmp_path / "logs", poll=0.01)
    assert outcome.done == ["other"]
    assert list(outcome.failed) == ["bad"]
    assert "no such thing" in outcome.failed["bad"].read_text("utf-8")
    assert outcome.skipped == ["follower", "its follower"]
    assert not outcome.stopped


def test_a_job_that_makes_nothing_has_failed(tmp_path: Path) -> None:
    empty = Job(
        name="empty", outcome=tmp_path / "never", command=lambda: [sys.executable, "-c", ""]
    )
    outcome = run_jobs([empty], workers=1, threads=1, logs=tmp_path, poll=0.01)
    assert list(outcome.failed) == ["empty"]


def test_jobs_get_their_threads_and_run_side_by_side(tmp_path: Path) -> None:
    # Each waits until the other has begun: one after the other they would never end.
    code = (
        "import os, time\nfrom pathlib import Path\nassert os.environ['OMP_NUM_THREADS'] == '3'\n"
        "Path({own!r}).touch()\n"
        "while not Path({other!r}).exists():\n    time.sleep(0.01)"
    )
    here, there = str(tmp_path / "a"), str(tmp_path / "b")
    jobs = [
        job("one", tmp_path, code.format(own=here, other=there)),
        job("two", tmp_path, code.format(own=there, other=here)),
    ]
    outcome = run_jobs(jobs, workers=2, threads=3, logs=tmp_path / "logs", poll=0.01)
    assert sorted(outcome.done) == ["one", "two"]


def test_time_over_asks_jobs_to_stop_and_waits(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\nfrom pathlib import Path\n"
        "def stop(*_):\n"
        f"    Path({str(tmp_path / 'saved')!r}).touch()\n    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        f"Path({str(tmp_path / 'begun')!r}).touch()\ntime.sleep({PATIENCE})"
    )
    jobs = [job("long", tmp_path, code), job("next", tmp_path, needs=("long",))]
    outcome = run_jobs(jobs, workers=1, threads=1, logs=tmp_path, minutes=0.05, poll=0.01)
    assert (tmp_path / "begun").exists()
    assert (tmp_path / "saved").exists()
    assert outcome.stopped
    assert outcome.skipped == ["next"]
    assert not outcome.failed


def test_handlers_of_signals_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    run_jobs([], workers=1, threads=1, logs=tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before


def test_needs_that_nothing_meets_and_twins_are_refused(tmp_path: Path) -> None:
    lonely = job("a", tmp_path, needs=("b",))
    with pytest.raises(ValueError, match="nothing makes b"):
        run_jobs([lonely], workers=1, threads=1, logs=tmp_path)
    lonely.outcome.touch()  # what is done needs nothing more
    assert run_jobs([lonely], workers=1, threads=1, logs=tmp_path).done == ["a"]
    with pytest.raises(ValueError, match="jobs share a name: a"):
        run_jobs([job("a", tmp_path)] * 2, workers=1, threads=1, logs=tmp_path)


def test_a_command_that_cannot_be_made_fails_alone_and_nothing_is_left_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> list[str]:
        raise ValueError("no learning rate")

    bad = Job(name="bad", outcome=tmp_path / "never", command=none)
    outcome = run_jobs([bad, job("good", tmp_path)], workers=2, threads=1, logs=tmp_path, poll=0.01)
    assert outcome.done == ["good"]
    assert list(outcome.failed) == ["bad"]

    def broken() -> list[str]:
        raise RuntimeError("a fault of ours")

    begun: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *words: Any, **options: Any) -> None:
            super().__init__(*words, **options)
            begun.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    slow = job("slow", tmp_path, f"import time\ntime.sleep({PATIENCE})")
    wrong = Job(name="wrong", outcome=tmp_path / "never", command=broken)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        run_jobs([slow, wrong], workers=2, threads=1, logs=tmp_path, poll=0.01)
    (left,) = begun
    try:
        assert left.poll() is not None
    finally:
        left.kill()


def test_what_comes_after_waits_for_the_end_good_or_bad(tmp_path: Path) -> None:
    check = f"assert __import__('os').path.exists({str(tmp_path / 'good.done')!r})"
    later = dataclasses.replace(job("later", tmp_path, check), after=("good", "bad"))
    jobs = [later, job("good", tmp_path), job("bad", tmp_path, "raise SystemExit(1)")]
    outcome = run_jobs(jobs, workers=2, threads=1, logs=tmp_path / "logs", poll=0.01)
    assert sorted(outcome.done) == ["good", "later"]
    assert list(outcome.failed) == ["bad"]


# -- the matrix -------------------------------------------------------------------------------


def test_every_command_of_the_matrix_is_understood(tmp_path: Path) -> None:
    matrix = load_matrix(HERE / "quality.yaml")
    for model in matrix.models:  # a search whose middle rate is the best
        for place, rate in enumerate(matrix.rates):
            folder = search_folder(tmp_path, model, rate)
            folder.mkdir(parents=True)
            summary = {"metrics": {"val/loss": abs(place - 1)}}
            (folder / "summary.json").write_text(json.dumps(summary))
    assert chosen_rate(matrix, tmp_path, "crate") == matrix.rates[1]
    (search_folder(tmp_path, "crate", matrix.rates[0]) / "summary.json").unlink()  # it diverged
    assert chosen_rate(matrix, tmp_path, "crate") == matrix.rates[1]
    with pytest.raises(ValueError, match="no learning rate of nothing"):
        chosen_rate(matrix, tmp_path, "nothing")
    jobs = jobs_of(matrix, tmp_path, SOURCE)
    assert len({j.name for j in jobs}) == len(jobs)
    trained = 0
    for each in jobs:
        words = each.command()
        assert words[0] == sys.executable
        if "altered.py" in words[1]:
            assert words[2] in ALTERATIONS
        if "pretrain" in words:
            config, options = parse_pretrain(words[words.index("pretrain") + 1 :])
            assert config.data.source == SOURCE
            assert Path(options["out"]) == each.outcome.parent
            trained += 1
            if each.name == "compared/vitmae-params-1":
                assert (config.vitmae, config.seed) == ("parameters", 1)
                assert config.optim.base_lr == matrix.rates[1]
            if each.name == "ablations/eta-0.3":
                assert config.model.step_size == 0.3
    assert trained == len(matrix.models) * len(matrix.rates) + len(matrix.variants) + len(
        matrix.models
    ) * len(matrix.seeds)


@pytest.mark.parametrize(
    "name",
    [
        "quality-gpu",
        "quality-objective",
        "quality-operators",
        "quality-operators-time",
        "quality-overcomplete",
    ],
)
def test_the_other_matrices_are_understood_too(tmp_path: Path, name: str) -> None:
    matrix = load_matrix(HERE / f"{name}.yaml")
    for model in matrix.models:
        folder = search_folder(tmp_path, model, matrix.rates[-1])
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps({"metrics": {"val/loss": 0.5}}))
    commands = {job.name: job.command() for job in jobs_of(matrix, tmp_path, SOURCE)}
    found = {
        name: parse_pretrain(words[words.index("pretrain") + 1 :])[0]
        for name, words in commands.items()
        if "pretrain" in words
    }
    searched = 0 if matrix.search is None else len(matrix.rates)
    runs = len(matrix.models) * (searched + len(matrix.seeds)) + len(matrix.variants)
    assert len(found) == runs
    for variant, changes in matrix.variants.items():
        assert ("altered.py" in commands[f"ablations/{variant}"][1]) == ("alter" in changes)


def test_without_a_search_the_only_rate_is_taken(tmp_path: Path) -> None:
    matrix = load_matrix(HERE / "quality-objective.yaml")
    assert chosen_rate(matrix, tmp_path, "crate") == matrix.rates[0]
    jobs = jobs_of(matrix, tmp_path, "digits")
    assert not any(job.name.startswith("search/") for job in jobs)
    assert all(not job.after for job in jobs)
    measured = [job for job in jobs if job.name == "compared/crate-0.1-0/knn"]
    assert measured[0].command()[-4:-2] == ["--limit", "10000"]
    values = {**matrix.values, "search": {"rates": [1e-3, 2e-3], "settings": None}}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ValueError, match=r"search\.settings may be null where search\.rates holds"):
        load_matrix(tmp_path / "two.yaml")


def test_more_rates_are_taken_and_runs_at_the_old_best_are_told(tmp_path: Path) -> None:
    matrix = load_matrix(HERE / "quality.yaml")
    rates = [*matrix.rates, 2 * max(matrix.rates)]
    values = {**matrix.values, "search": {**matrix.values["search"], "rates": rates}}
    assert extends(values, matrix.values)
    assert not extends(matrix.values, values)

    def done(folder: Path, rate: float, loss: float) -> None:
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps({"metrics": {"val/loss": loss}}))
        config = PretrainConfig(optim=OptimConfig(base_lr=rate))
        (folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))

    done(compared_folder(tmp_path, "crate", 0), matrix.rates[-1], 0.4)
    assert superseded(matrix, tmp_path) == []  # the search's folders are gone: nothing to tell
    done(search_folder(tmp_path, "crate", matrix.rates[-1]), matrix.rates[-1], 0.5)
    assert superseded(matrix, tmp_path) == []
    extended = dataclasses.replace(matrix, rates=tuple(rates))
    done(search_folder(tmp_path, "crate", rates[-1]), rates[-1], 0.45)
    assert superseded(extended, tmp_path) == ["compared/crate-0"]


def test_fine_tuning_of_the_matrix_is_understood(tmp_path: Path) -> None:
    matrix = load_matrix(HERE / "quality.yaml")
    first = compared_folder(tmp_path, "crate", 0)
    first.mkdir(parents=True)
    (first / "config.yaml").write_text(yaml.safe_dump(PretrainConfig().to_dict()))
    jobs = [j for j in jobs_of(matrix, tmp_path, SOURCE) if j.name.startswith("finetuned/")]
    shares = set()
    for each in (j for j in jobs if j.name.endswith("-0")):
        words = each.command()
        config, _ = parse_finetune(words[words.index("finetune") + 1 :])
        shares.add(config.data.share)
        assert (config.weights is None) == ("/scratch-" in each.name)
    assert shares == set(matrix.shares)


def test_what_is_left_out_takes_its_followers_along(tmp_path: Path) -> None:
    jobs = jobs_of(load_matrix(HERE / "quality.yaml"), tmp_path, SOURCE)
    names = {each.name for each in wanted(jobs, ["compared/vitmae", "ablations"])}
    assert "compared/crate-0/probe" in names
    assert "compared/vitmae-same-0/probe" not in names
    assert "finetuned/vitmae-params-0.01-0" not in names
    assert "finetuned/crate-0.01-0" in names
    kept = wanted(jobs, ["search/crate-0.001"])  # and with it all that waits for the search
    assert "compared/crate-0" not in {each.name for each in kept}
    going_on = {each.name: each for each in wanted(jobs, ["search/crate-0.001"], go_on=True)}
    assert "search/crate-0.001" not in going_on
    before = next(each for each in jobs if each.name == "compared/crate-0").after
    assert {*going_on["compared/crate-0"].after} == {*before} - {"search/crate-0.001"}
    for rate in load_matrix(HERE / "quality.yaml").rates:
        folder = search_folder(tmp_path, "crate", rate)
        folder.mkdir(parents=True)
        (folder / "summary.json").touch()
    assert "compared/crate-0" in {each.name for each in wanted(jobs, ["search"])}


def test_a_begun_run_is_resumed(tmp_path: Path) -> None:
    matrix = load_matrix(HERE / "quality.yaml")
    jobs = jobs_of(matrix, tmp_path, SOURCE)
    folder = jobs[0].outcome.parent
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    assert jobs[0].command()[-2:] == ["--resume", str(folder)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": []}, "must not be empty"),
        ({"extra": 1}, "extra is not known"),
        ({"finetune": {"recipe": "x"}}, "finetune.shares is missing"),
        ({"search": None}, "search.rates is missing"),
    ],
)
def test_faults_of_a_matrix_are_named(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    values = yaml.safe_load((HERE / "quality.yaml").read_text("utf-8"))
    path = tmp_path / "matrix.yaml"
    path.write_text(yaml.safe_dump({**values, **change}))
    with pytest.raises(ValueError, match=message):
        load_matrix(path)


# -- alterations ------------------------------------------------------------------------------


ETA, LAMBDA = 0.1, 0.5


def altered_layers(name: str, **fields: Any) -> tuple[EncoderLayer, DecoderLayer, Tensor]:
    """One encoder and one decoder layer of an alteration, and tokens."""
    torch.manual_seed(0)
    small = {"dim": 8, "num_heads": 2, "decoder_num_heads": 2, "depth": 1, "decoder_depth": 1}
    config = ModelConfig(**{**small, "step_size": ETA, "sparsity": LAMBDA, **fields})
    operators = ALTERATIONS[name]
    encoder_layers = operators.encoder_layers(config)
    (encoder,), (decoder,) = encoder_layers, operators.decoder_layers(config, encoder_layers)
    return encoder, decoder, torch.randn(2, 3, 8)


def lasso_codes(x: Tensor, D: Tensor, steps: int, *, signed: bool = False) -> Tensor:
    """Proximal gradient of |x - a D^T|^2 / 2 + lambda |a|_1 from 0, an atom a column of D."""
    a = torch.zeros(*x.shape[:-1], D.shape[1])
    for _ in range(steps):
        a = a - ETA * (a @ D.T - x) @ D
        a = a.sign() * (a.abs() - ETA * LAMBDA).clamp(min=0) if signed else a - ETA * LAMBDA
        a = a if signed else a.clamp(min=0)
    assert a.count_nonzero() > 0
    return a


def test_signed_codes_shrink_from_both_sides() -> None:
    encoder, _, z = altered_layers("signed")
    D, x = encoder.ista.dictionary, encoder.norm2(z)
    g = x + ETA * (x - x @ D.T) @ D
    bound = ETA * LAMBDA
    expected = torch.where(g > bound, g - bound, torch.where(g < -bound, g + bound, 0))
    torch.testing.assert_close(encoder.sparsify(z), expected)


@pytest.mark.parametrize("name", ["skip", "decoder-skip", "both-skips"])
def test_skips_add_what_entered_the_half_step(name: str) -> None:
    encoder, decoder, z = altered_layers(name)
    codes, y = encoder.ista(encoder.norm2(z)), decoder.synthesis(decoder.norm1(z))
    in_encoder, in_decoder = name != "decoder-skip", name != "skip"
    torch.testing.assert_close(encoder.sparsify(z), z + codes if in_encoder else codes)
    torch.testing.assert_close(decoder.expand(z), z + y if in_decoder else y)


@pytest.mark.parametrize("name", ["own-values", "own-attention"])
def test_attention_with_projections_of_its_own(name: str) -> None:
    encoder, _, z = altered_layers(name)
    mssa: Any = encoder.mssa
    parts = [mssa.subspaces, getattr(mssa, "key", mssa.subspaces), mssa.value]
    q, k, v = (part(z).view(2, 3, 2, 4) for part in parts)
    heads = torch.empty_like(q)
    for b in range(2):
        for head in range(2):
            weights = (q[b, :, head] @ k[b, :, head].T / 2).softmax(-1)
            heads[b, :, head] = weights @ v[b, :, head]
    torch.testing.assert_close(mssa(z), mssa.output(heads.flatten(-2)))
    assert hasattr(mssa, "key") == (name == "own-attention")


@pytest.mark.parametrize("name", ["mlp", "encoder-mlp"])
def test_mlps_in_place_of_sparse_steps(name: str) -> None:
    encoder, decoder, z = altered_layers(name)
    layers: Any = encoder.ista.layers
    hidden = torch.nn.functional.gelu(layers[0](encoder.norm2(z)))
    torch.testing.assert_close(encoder.sparsify(z), z + layers[2](hidden))
    assert hasattr(decoder.synthesis, "layers") == (name == "mlp")
    if name == "mlp":
        layers = decoder.synthesis.layers
        hidden = torch.nn.functional.gelu(layers[0](decoder.norm1(z)))
        torch.testing.assert_close(decoder.expand(z), z + layers[2](hidden))


def test_overcomplete_codes_return_by_a_matrix_of_their_own() -> None:
    encoder, decoder, z = altered_layers("overcomplete")
    ista: Any = encoder.ista
    assert ista.dictionary.shape == (8, 32)
    codes = lasso_codes(encoder.norm2(z), ista.dictionary, 2)
    torch.testing.assert_close(encoder.sparsify(z), z + ista.back(codes))
    assert isinstance(decoder.synthesis, Synthesis)


@pytest.mark.parametrize(
    ("name", "steps"), [("one-step", 1), ("four-steps", 4), ("signed-overcomplete", 2)]
)
def test_other_steps_of_overcomplete_layers(name: str, steps: int) -> None:
    encoder, decoder, z = altered_layers(name, overcomplete=4)
    for layer, x, made in (
        (encoder.ista, encoder.norm2(z), encoder.sparsify(z)),
        (decoder.synthesis, decoder.norm1(z), decoder.expand(z)),
    ):
        D = layer.dictionary
        codes = lasso_codes(x, D, steps, signed=name == "signed-overcomplete")
        torch.testing.assert_close(made, z + codes @ D.T)


def test_an_own_synthesis_starts_as_the_dictionary_and_is_another_matrix() -> None:
    encoder, decoder, z = altered_layers("own-synthesis", overcomplete=4)
    ista: Any = encoder.ista
    torch.testing.assert_close(ista.back.weight, ista.dictionary)  # D itself before training
    assert ista.back.weight is not ista.dictionary
    with torch.no_grad():
        ista.back.weight.mul_(3)
    codes = lasso_codes(encoder.norm2(z), ista.dictionary, 2)
    torch.testing.assert_close(encoder.sparsify(z), z + 3 * codes @ ista.dictionary.T)
    assert "ista.back.weight" in dict(encoder.named_parameters())
    assert hasattr(decoder.synthesis, "back")


def test_an_altered_process_builds_altered_models(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (autoencoder, encoder):
        monkeypatch.setattr(module, "operators_of", module.operators_of)
    alter("own-synthesis")
    assert "back" in str(build_model("debug", overcomplete=2))
    assert "back" not in str(build_model("debug"))  # it is of overcomplete layers alone
    alter("own-values")
    assert "value" in str(build_model("debug"))


def test_an_unknown_alteration_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert altered(["sgned", "pretrain"]) == 2
    assert "signed, skip" in capsys.readouterr().err


# -- everything together ----------------------------------------------------------------------

TINY = {
    "recipe": "digits",
    "settings": {
        "optim.epochs": 1, "optim.warmup_epochs": 0, "data.limit": 200, "data.val_limit": 40,
        "model.dim": 24, "model.depth": 1, "model.decoder_depth": 1, "model.num_heads": 2,
        "model.decoder_num_heads": 2, "record.reconstruct_epochs": 0, "record.measure_epochs": 0,
    },
    "models": {"crate": {}, "vitmae-same": {"vitmae": "configuration"}},
    "seeds": [0],
    "search": {"rates": [1e-2], "settings": {}},
    "ablations": {"settings": {}, "variants": {"base": {}, "skip": {"alter": "skip"}}},
    "finetune": {"recipe": "finetune-cifar10-small", "shares": {}},
    "measure": {"completions": 8},
}  # fmt: skip


@pytest.fixture
def forked_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of the pool are forked from a process that has imported the libraries already."""
    monkeypatch.setattr(pool, "subprocess", SimpleNamespace(Popen=ForkedPopen))


@pytest.mark.usefixtures("forked_jobs")
def test_a_tiny_matrix_runs_stops_goes_on_and_becomes_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix, out = tmp_path / "tiny.yaml", tmp_path / "out"
    matrix.write_text(yaml.safe_dump(TINY))
    words = ["run", "digits", "--out", str(out), "--matrix", str(matrix), "--workers", "2"]
    slow = [
        "compared/crate-0/",
        "compared/vitmae-same-0/",
        "ablations/skip/probe",
        "ablations/base/",
    ]
    assert main([*words, "--leave-out", *slow, "--minutes", "0"]) == 143
    assert "the same command goes on" in capsys.readouterr().out
    # The commands of most jobs run here; the run then goes on with what is left as processes: an
    # altered run and its completions.
    for each in jobs_of(load_matrix(matrix), out, "digits"):
        if "ablations/skip" not in each.name and not each.name.startswith(tuple(slow)):
            made = each.command()
            assert made[:4] == [sys.executable, "-m", "crate_mae", "pretrain"]
            assert command(made[3:]) == 0
    assert main([*words, "--leave-out", *slow]) == 0
    assert "7 of 7 jobs done" in capsys.readouterr().out
    assert len(list((out / "logs").iterdir())) == 2
    timing = ["time", str(out), "--matrix", str(matrix), "--rounds", "2", "--no-memory"]
    assert main([*timing[:1], str(tmp_path / "nothing"), *timing[2:]]) == 1
    assert "is no folder" in capsys.readouterr().err
    assert main(timing) == 0
    assert main(timing) == 1
    assert "is there already" in capsys.readouterr().err
    assert main([*timing, "--again", "--processor-time", "--device", "cuda"]) == 1
    assert "--processor-time is of CPUs" in capsys.readouterr().err
    assert main([*timing, "--again", "--processor-time"]) == 0
    assert main(["table", str(out), "--matrix", str(matrix), "--json", str(tmp_path / "t.json"),
                 "--figure", str(tmp_path / "t.png"),
                 "--variants", str(tmp_path / "v.png")]) == 0  # fmt: skip
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "t.json").read_text("utf-8"))
    assert (tmp_path / "t.png").exists()
    assert (tmp_path / "v.png").exists()
    crate, twin = (found["compared"][model]["0"] for model in ("crate", "vitmae-same"))
    assert twin["parameters"] > 2 * crate["parameters"]
    assert crate["loss"] == crate["curve"][-1][1]
    assert found["times"]["first"] == "crate"
    assert found["times"]["clock"] == "processor time"
    times = found["times"]["models"]
    assert times["crate"]["relative"]["median"] == 1.0
    ratios = [
        twin_s / crate_s
        for twin_s, crate_s in zip(
            times["vitmae-same"]["rounds"], times["crate"]["rounds"], strict=True
        )
    ]
    assert times["vitmae-same"]["relative"]["median"] == pytest.approx(sum(ratios) / 2)
    assert f"| {sum(ratios) / 2:.2f} x |" in printed
    rates = found["search"]["crate"]
    best = min(rates, key=lambda rate: float(rates[rate]))
    assert crate["base_lr"] == float(best)
    assert found["ablations"]["skip"]["psnr"] > 0
    cost = {name: facts.get("pflops") for name, facts in found["ablations"].items()}
    assert cost["skip"] == cost["base"]  # counted by who altered it: additions are no products
    assert found["ablations"]["skip"]["parameters"] == found["ablations"]["base"]["parameters"]
    assert f"{crate['loss']:.4f}" in printed
    values = yaml.safe_load(matrix.read_text("utf-8"))
    matrix.write_text(yaml.safe_dump({**values, "seeds": [1]}))
    assert main(words) == 1
    assert "begun with another matrix" in capsys.readouterr().err
    matrix.write_text(yaml.safe_dump({**values, "seeds": [0, 1]}))
    begun = (out / "matrix.json").read_text("utf-8")
    other = {**json.loads(begun), "source": "imagefolder:elsewhere"}
    (out / "matrix.json").write_text(json.dumps(other))
    assert main(words) == 1
    assert "begun with another matrix or source" in capsys.readouterr().err
    (out / "matrix.json").write_text(begun)
    assert main([*words, "--minutes", "0"]) == 143  # an addition is taken

    # Another folder goes on from the record alone: the search is not repeated.
    fresh = ["run", "digits", "--out", str(tmp_path / "fresh"), "--matrix", str(matrix)]
    none = ["--leave-out", "ablations", "compared", "--earlier", str(tmp_path / "t.json")]
    assert main([*fresh, *none]) == 0
    assert "2 of 2 jobs done" in capsys.readouterr().out
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- here -->\n<!-- /here -->\nafter\n")
    table = ["table", str(tmp_path / "fresh"), "--matrix", str(matrix)]
    assert main([*table, "--docs", str(page), "--place", "there"]) == 1
    assert "<!-- there -->" in capsys.readouterr().err
    assert main([*table, "--docs", str(page), "--place", "here"]) == 0
    assert page.read_text("utf-8").startswith("before\n<!-- here -->\n\n|  |")
    assert page.read_text("utf-8").endswith("|\n\n<!-- /here -->\nafter\n")
    table.append("--json")
    assert main([*table, str(tmp_path / "again.json")]) == 0
    again = json.loads((tmp_path / "again.json").read_text("utf-8"))
    assert again["earlier"]["date"] == found["date"]
    parts = ("search", "compared", "ablations", "baselines", "times")
    assert {part: again[part] for part in parts} == {part: found[part] for part in parts}
    matrix.write_text(yaml.safe_dump({**values, "settings": {"optim.epochs": 2}}))
    assert main([*fresh[:3], str(tmp_path / "new"), *fresh[4:], *none]) == 1
    assert "tells of another matrix" in capsys.readouterr().err
    other = {**found, "date": "2000-01-01"}
    (tmp_path / "t.json").write_text(json.dumps(other))
    matrix.write_text(yaml.safe_dump({**values, "seeds": [0, 1]}))
    assert main([*fresh, *none]) == 1
    assert "the record of another comparison" in capsys.readouterr().err
    (tmp_path / "t.json").write_text("[]")
    assert main([*fresh[:3], str(tmp_path / "new"), *fresh[4:], *none]) == 1
    assert "is no record of a comparison" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_what_is_found_goes_before_what_an_earlier_record_tells() -> None:
    def record(**parts: object) -> dict[str, object]:
        empty: dict[str, object] = {p: {} for p in ("baselines", "ablations", "finetuned")}
        matrix: dict[str, object] = {"ablations": {"variants": {"base": {}, "odd": {}}}}
        empty["times"] = {}
        return {"date": "then", "machine": "m", "matrix": matrix, "search": {}, **empty, **parts}

    found = record(
        search={"crate": {"0.1": None, "0.2": 0.4}},
        compared={"crate": {1: {"loss": 0.3}}, "twin": {}},
        ablations={"odd": {"loss": 1.0}},
    )
    earlier = record(
        search={"crate": {"0.1": 0.5}},
        compared={"crate": {"0": {"loss": 0.2}, "1": {"loss": 0.9, "psnr": 3.0}}},
        ablations={"base": {"loss": 2.0}},
        finetuned={"0.01": {"crate": {"0": 0.5}}},
        baselines={"raw pixels": {"probe": 0.4}},
        trained_on=["elsewhere"],
        times={"first": "crate"},
    )
    merged = with_earlier(found, earlier)
    assert merged["search"] == {"crate": {"0.1": 0.5, "0.2": 0.4}}
    assert merged["compared"] == {"crate": {"1": {"loss": 0.3}, "0": {"loss": 0.2}}, "twin": {}}
    assert list(merged["ablations"]) == ["base", "odd"]  # in the order of the matrix
    assert merged["finetuned"] == {"0.01": {"crate": {"0": 0.5}}}
    assert merged["baselines"] == {"raw pixels": {"probe": 0.4}}
    assert merged["times"] == {"first": "crate"}
    assert merged["earlier"] == {"date": "then", "machine": "m", "trained_on": ["elsewhere"]}
    newer = with_earlier({**found, "times": {"first": "twin"}}, earlier)
    assert newer["times"] == {"first": "twin"}  # never times of two machines side by side


def test_means_and_ranges_over_seeds_stand_in_the_table() -> None:
    run = {
        "parameters": 4e5, "gflops_per_image": 0.5, "loss": 0.3, "probe": 0.4, "base_lr": 1e-3,
    }  # fmt: skip
    found = {
        "matrix": {
            "ablations": {
                "variants": {
                    "half": {"masking.ratio": 0.5},
                    "base": None,
                    "odd": {"alter": "skip"},
                    "twin": {"vitmae": "configuration"},
                }
            }
        },
        "compared": {"crate": {0: run, 1: {**run, "loss": 0.4, "probe": 0.5}}, "none": {}},
        "baselines": {"raw pixels": {"probe": 0.25}},
        "search": {"crate": {"0.001": 0.5, "0.002": None}},
        "finetuned": {"0.01": {"crate": {0: 0.5, 1: 0.6}, "scratch": {}}},
        "ablations": {
            "half": {**run, "loss": 0.9},
            "base": run,
            "odd": {"parameters": 4e5, "loss": 0.2},
            "twin": {**run, "loss": 0.1},
        },
        "times": {"models": {"crate": {"relative": {"median": 1.256}}}},
    }
    # Another ratio is another task.
    assert comparable_losses(found) == {"base": 0.3, "odd": 0.2, "twin": 0.1}
    assert altered_names(found) == {"odd", "twin"}
    text = as_markdown(found)
    assert "| 0.500 | 1.26 x | 0.3500 (0.3000 to 0.4000) |" in text
    assert "| 45.0 % (40.0 to 50.0) |" in text
    assert "| raw pixels |  |  |  |  |  | 25.0 % |" in text
    assert "**none**" not in text
    assert "| crate | **0.5000** |  |" in text
    assert "| 0.9000 † |" in text
    assert "| odd | 0.40 M |  | 0.2000 |  |  |" in text  # its cost is not known
    assert "| 0.3000 |  | 40.0 % |" in text
    assert "| 1% | 55.0 % (50.0 to 60.0) |" in text
    assert "trained at" not in text
    alone = as_markdown({**found, "compared": {"crate": {}}})
    assert "| variant | parameters |" in alone
    assert "kNN" not in alone, "no table of models where none is compared"
    found["search"] = {"crate": {"0.001": 0.5, "0.002": 0.4}}
    assert "`crate` was trained at 0.001, the best rate before 0.002 was tried." in as_markdown(
        found
    )


@pytest.mark.parametrize("key", ["kind", "ratio", "ratio_max", "ratio_per", "square"])
def test_losses_under_other_masks_compare_with_none(key: str) -> None:
    run = {"parameters": 1, "loss": 0.25}
    found: dict[str, Any] = {
        "matrix": {"ablations": {"variants": {"base": None, "masks": {f"masking.{key}": "other"}}}},
        "ablations": {"base": run, "masks": run},
        "compared": {}, "search": {"crate": {}}, "finetuned": {},
    }  # fmt: skip
    assert comparable_losses(found) == {"base": 0.25}
    assert [line.count("†") for line in as_markdown(found).splitlines()[-2:]] == [0, 1]


@pytest.mark.parametrize("vitmae", [None, "configuration"])
def test_the_cost_of_drawn_ratios_is_the_mean_over_them(tmp_path: Path, vitmae: Any) -> None:
    """Of 16 patches, ratios from 25 to 75 % keep 4 to 11, each as often; 12 at the end alone."""
    config = dataclasses.replace(
        PRESETS["debug"], image_size=16, patch_size=4, depth=1, mask_tokens="decoder"
    )
    model = build_autoencoder(config, vitmae=vitmae, seed=0)

    def cost(**masking: Any) -> float:
        settings = {"optim": {"batch_size": 2}, "masking": masking}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
        return flops_per_image_of(tmp_path, model)

    by_count = {}
    for kept in range(4, 12):
        ratio = 1 - (kept + 0.5) / 16
        assert num_kept(16, ratio) == kept
        by_count[kept] = cost(ratio=ratio)
    assert len(set(by_count.values())) == 8
    drawn = cost(ratio=0.25, ratio_max=0.75, ratio_per="step")
    assert drawn == pytest.approx(sum(by_count.values()) / 8, rel=1e-9)
    assert cost(ratio=0.5, ratio_max=0.5) == cost(ratio=0.5) == by_count[8]
    assert cost(ratio=0.6, square=2) == by_count[4]  # of four squares one stays, whole


def test_what_a_step_needs_is_measured_and_stands_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The measured process need not import the libraries anew: what a step adds is looked at.
    contexts = SimpleNamespace(get_context=lambda _: FORKS)
    monkeypatch.setattr(peak_memory, "multiprocessing", contexts)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "models": {"crate": {}}}))
    matrix = load_matrix(tmp_path / "tiny.yaml")
    told = timed_steps(matrix, rounds=1, threads=1)
    memory = told["models"]["crate"]["memory"]
    config, work = job_of(matrix.recipe, matrix.settings, "cpu")
    images = 4 * work.batch * config.model.channels * config.model.image_hw[0] ** 2  # float32
    assert memory["peak"] > memory["above_loaded"] > images
    run = {"parameters": 1, "gflops_per_image": 1, "loss": 1, "base_lr": 1}
    found = {
        "compared": {"crate": {0: run}, "b": {}},
        "baselines": {"raw pixels": {"probe": 0.25}}, "search": {"crate": {"1": None}},
        "finetuned": {}, "ablations": {}, "matrix": {"ablations": {"variants": {}}}, "times": told,
    }  # fmt: skip
    head, rule, row, pixels = as_markdown(found).splitlines()
    assert head.count("|") == rule.count("|") == row.count("|") == pixels.count("|")
    assert "| time of a step | memory of a step | loss |" in head
    assert f"| 1.00 x | {memory['above_loaded'] / 1e6:.0f} MB | 1.0000 |" in row


@pytest.mark.usefixtures("forked_jobs")
def test_interrupting_the_pool_saves_running_jobs(tmp_path: Path) -> None:
    matrix, out = tmp_path / "tiny.yaml", tmp_path / "out"
    long = {**TINY, "settings": {**TINY["settings"], "optim.epochs": 5000}}  # type: ignore[dict-item]
    matrix.write_text(yaml.safe_dump(long))
    words = ["run", "digits", "--out", str(out), "--matrix", str(matrix), "--workers", "1"]
    folder = search_folder(out, "crate", 1e-2)
    ended = threading.Event()

    def interrupt() -> None:
        while not ended.wait(0.1):
            if (folder / "metrics.jsonl").exists():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    try:
        assert main(words) == 143
    finally:
        ended.set()
        watcher.join()
    assert (folder / "checkpoints" / "last.ckpt").exists()
