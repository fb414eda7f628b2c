"""The numbers of the documents are those of the records they name."""

import csv
import json
import re
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from pages import PAGES, ROOT, section_of, tables_of

import derived
import operator_cost
import pools
from crate_mae.weights.shipped import SHIPPED
from few_labels import PLACE, table_lines
from quality_tables import as_markdown

RECORDS, BENCHMARKS = ROOT / "docs" / "results", ROOT / "benchmarks" / "results"
GPU = "quality-nvidia-h200-2026-11-26"
OPERATORS = "quality-operators-intel-xeon-2-cores-2026-11-30"
OPERATORS_IN_TIME = "quality-operators-time-intel-xeon-2-cores-2026-11-30"
POOLS = "pools-intel-xeon-2-cores-2026-11-30"
POOLS_SHORT = "pools-short-intel-xeon-2-cores-2026-11-30"
POOLS_PARAMS = "pools-params-amd-epyc-2-cores-2026-12-01"
POOLS_40 = "pools-vitmae-40-amd-epyc-2-cores-2026-12-01"
DERIVED = "derived-intel-xeon-2-cores-2026-11-30"
VITMAE_PARAMS = "quality-objective-amd-epyc-2-cores-2026-12-01"
FEW_MORE = "few-labels-more-amd-epyc-2-cores-2026-12-01.json"
FEW_AT_96 = "few-labels-96-amd-epyc-2-cores-2026-12-01.json"
FEW_OF_VITMAE = "few-labels-own-vit-amd-epyc-2-cores-2026-12-01.json"
FEW_OF_VITMAE_WIDE = "few-labels-own-vit-wide-amd-epyc-2-cores-2026-12-01.json"
SETS = ("trashnet", "flowers", "pets")
FINETUNED_LONG = {
    "gamma 0.03": "cifar10-rate-finetune",
    "gamma 0": "cifar10-shallow-finetune",
    "from scratch": "cifar10-shallow-scratch",
    "ViT-MAE as small, gamma 0.03": "vitmae-40-finetune",
    "ViT of its sizes, from scratch": "vitmae-params-scratch",
}
"""Rows of the table of fine-tuning after 40 epochs, and what their records are called."""
RESULTS = (ROOT / "docs" / "results.md").read_text("utf-8")
APPENDIX = (ROOT / "docs" / "results-appendix.md").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8")


def record(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def shows(cell: str, value: float, scale: float = 1.0) -> None:
    """A cell's first number is the value, rounded to as many digits as it shows."""
    number = re.search(r"\d[\d,]*(?:\.(\d+))?", cell)
    assert number is not None, cell
    shown = float(number[0].replace(",", ""))
    assert abs(shown - scale * value) <= 0.5 * 10 ** -len(number[1] or "") + 1e-9, (cell, value)


def shows_accuracy(cell: str, row: dict[str, Any]) -> None:
    """A cell holds an accuracy in per cent and, in brackets, the ends of its interval."""
    shows(cell, row["accuracy"], 100)
    ends = re.search(r"\((.+) to (.+)\)", cell)
    assert ends is not None, cell
    for end, value in zip(ends.groups(), row["interval"], strict=True):
        shows(end, value, 100)


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of a record of probe or kNN."""
    return list(record(RECORDS / f"{name}.json")["rows"])


def losses_of(name: str) -> list[float]:
    """The losses of a run, epoch by epoch, that were logged on images that validate."""
    with (RECORDS / f"{name}-metrics.csv").open(newline="") as file:
        return [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]


# -- the short tables ---------------------------------------------------------------------------


def facts_of(label: str) -> dict[str, float]:
    """What the records know of a row of the short tables: the run of seed 0, or a baseline."""
    if label.startswith(("random baseline", "raw pixels")):
        subject = label.split(":")[0]
        probe, knn = (
            next(row for row in rows_of(f"cifar10-shallow-{kind}") if row["subject"] == subject)
            for kind in ("probe", "knn")
        )
        facts = {"linear probe": probe["accuracy"], "kNN": knn["accuracy"]}
        return facts | ({"parameters": probe["parameters"]} if "random" in label else {})
    if "ships as `cifar10-rate`" in label:
        kept = record(SHIPPED["cifar10-rate"].folder / "metrics.json")
        (probe,), (knn,) = (
            [row for row in rows_of(f"cifar10-rate-{kind}") if row["subject"] == "model"]
            for kind in ("probe", "knn")
        )
        return {
            "parameters": kept["parameters"], "loss": kept["validation"]["val/loss"],
            "linear probe": probe["accuracy"], "kNN": knn["accuracy"],
        }  # fmt: skip
    if "same ViT-MAE with the coding rate" in label:
        (probe,), (knn,) = (
            [row for row in rows_of(f"vitmae-40-{kind}") if row["subject"] == "model"]
            for kind in ("probe", "knn")
        )
        return {
            "parameters": probe["parameters"], "loss": losses_of("vitmae-40")[-1],
            "linear probe": probe["accuracy"], "kNN": knn["accuracy"],
        }  # fmt: skip
    named = {
        "CRATE-MAE, ships as": "crate-shallow",
        "ViT-MAE, as small": "vitmae-shallow",
        "ViT-MAE, 3.5 times": "vitmae-same",
    }
    found = re.match(r"`([\w-]+)`: ", label)
    model = found[1] if found else next(m for text, m in named.items() if label.startswith(text))
    run = record(BENCHMARKS / f"{GPU}.json")["compared"][model]["0"]
    return {
        "parameters": run["parameters"], "loss": run["loss"], "linear probe": run["probe"],
        "kNN": run["knn"],
    }  # fmt: skip


@pytest.mark.parametrize("page", [README, RESULTS], ids=["README.md", "results.md"])
def test_the_short_tables_hold_what_was_measured(page: str) -> None:
    assert GPU in RESULTS
    (table,) = [t for t in tables_of(page) if t[0][1:] == ["parameters", "loss", "linear probe",
                                                           "kNN"]]  # fmt: skip
    assert len(table) >= 6
    for label, *cells in table[1:]:
        facts = facts_of(label)
        for name, cell in zip(table[0][1:], cells, strict=True):
            assert bool(cell) == (name in facts), (label, name)
            if cell:
                shows(cell, facts[name], {"parameters": 1e-6, "loss": 1}.get(name, 100))


def test_the_larger_vitmae_has_as_many_parameters_as_is_said() -> None:
    larger, small = facts_of("ViT-MAE, 3.5 times"), facts_of("CRATE-MAE, ships as")
    assert round(larger["parameters"] / small["parameters"], 1) == 3.5


def test_the_sentences_of_the_results_page_hold_what_was_measured() -> None:
    compared = record(BENCHMARKS / f"{GPU}.json")["compared"]
    small, larger = (
        [run["probe"] for run in compared[name].values()]
        for name in ("crate-shallow", "vitmae-same")
    )
    sure = " ".join(section_of(RESULTS, "## How sure are we?").split())
    spread = re.search(r"lie within ([\d.]+) points in the probe, .+ within ([\d.]+);", sure)
    assert spread is not None
    for shown, probes in zip(spread.groups(), (small, larger), strict=True):
        assert len(probes) == 3
        shows(shown, max(probes) - min(probes), 100)
    helps = section_of(RESULTS, "## Does pre-training help?")
    for name in ("finetune-1-percent", "scratch-1-percent", "finetune", "scratch"):
        accuracy = record(RECORDS / f"cifar10-{name}.json")["accuracy"]
        assert f"{100 * accuracy:.1f}" in helps, name
    times = compared["crate-overcomplete"]["0"]["gflops_per_image"]
    times /= compared["vitmae-shallow"]["0"]["gflops_per_image"]
    assert f"{times:.1f} times" in " ".join(RESULTS.split())


# -- the appendix -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("gpu", GPU),
        ("quality", "quality-amd-epyc-2-cores-2026-11-26"),
        ("overcomplete", "quality-overcomplete-amd-epyc-2-cores-2026-11-26"),
        ("objective", "quality-objective-amd-epyc-2-cores-2026-11-30"),
        ("objective-eps", "quality-objective-intel-xeon-2-cores-2026-11-30"),
        ("objective-rates", "quality-objective-intel-xeon-2-cores-2026-12-01"),
        ("objective-vitmae", VITMAE_PARAMS),
        ("operators", OPERATORS),
        ("operators-time", OPERATORS_IN_TIME),
    ],
)
def test_the_tables_of_the_comparisons_are_those_of_their_records(place: str, name: str) -> None:
    _, _, rest = APPENDIX.partition(f"<!-- {place} -->\n")
    shown, end, _ = rest.partition(f"<!-- /{place} -->")
    assert end
    assert shown.strip() == as_markdown(record(BENCHMARKS / f"{name}.json")).strip()
    assert f"../benchmarks/results/{name}.json" in APPENDIX


@pytest.mark.parametrize("name", [name for name in SHIPPED if name.startswith("cifar10")])
def test_the_tables_of_the_shipped_models_hold_what_was_measured(name: str) -> None:
    stem = "cifar10" if name == "cifar10-small" else name
    section = section_of(APPENDIX, f"## The shipped model {name}")
    (table,) = [t for t in tables_of(section) if t[0][0] == "features"]
    probes, neighbours = rows_of(f"{stem}-probe"), rows_of(f"{stem}-knn")
    subjects = ["model", "random baseline", "untrained ViT-MAE (same sizes)", "raw pixels"]
    assert len(table) == 1 + len(subjects)
    for subject, (_, parameters, width, probe, knn) in zip(subjects, table[1:], strict=True):
        row = next(row for row in probes if row["subject"] == subject)
        shows_accuracy(probe, row)
        shows(width, row["dim"])
        if parameters:
            shows(parameters, row["parameters"], 1e-6)
        near = [row for row in neighbours if row["subject"] == subject]
        assert bool(knn) == bool(near)
        if knn:
            shows_accuracy(knn, near[0])


@pytest.mark.parametrize("name", ["cifar10-small", "cifar10-overcomplete"])
def test_the_losses_by_epoch_are_those_that_were_logged(name: str) -> None:
    stem = "cifar10" if name == "cifar10-small" else name
    with (RECORDS / f"{stem}-metrics.csv").open(newline="") as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    section = section_of(APPENDIX, f"## The shipped model {name}")
    (table,) = [t for t in tables_of(section) if t[0][0] == "after epoch"]
    for epoch, cell in zip(table[0][1:], table[1][1:], strict=True):
        shows(cell, losses[int(epoch) - 1])
    assert int(table[0][-1]) == len(losses)


def test_what_operators_do_is_what_was_measured() -> None:
    _, _, rest = APPENDIX.partition("<!-- derived -->\n")
    shown, end, _ = rest.partition("<!-- /derived -->")
    assert end
    layers = record(BENCHMARKS / f"{DERIVED}.json")
    assert shown.strip() == "\n".join(derived.table_lines(layers))
    section = section_of(APPENDIX, "### Other operators, and the derivation's conditions")
    assert f"../benchmarks/results/{DERIVED}.json" in section
    compared, timed = (
        {m: runs["0"] for m, runs in record(BENCHMARKS / f"{name}.json")["compared"].items()}
        for name in (OPERATORS, OPERATORS_IN_TIME)
    )
    told = " ".join(section.split())
    plain, own, kept, exact = (
        compared[name] for name in ("crate", "own-form", "faithful", "faithful-exact")
    )
    assert f"{own['loss']:.3f} against {plain['loss']:.3f}" in told
    for run in (own, plain):
        low, high = (f"{100 * end:.1f}" for end in run["probe interval"])
        assert f"{100 * run['probe']:.1f} % ({low} to {high})" in told
    in_time = timed["own-form"]
    assert f"at equal time {in_time['loss']:.3f} and {100 * in_time['probe']:.1f} %" in told
    assert f"{kept['loss']:.3f} and {100 * kept['probe']:.1f} %" in told
    assert f"it is behind ({timed['faithful']['loss']:.3f})" in told
    assert timed["faithful"]["loss"] > timed["crate"]["loss"]
    alone = compared["attention-only"]
    assert f"as well**, {alone['loss']:.3f}, and at equal time best" in told
    assert min(timed, key=lambda name: timed[name]["loss"]) == "attention-only"
    assert f"best, {timed['attention-only']['loss']:.3f}:" in told
    neighbours = {name: 100 * run["knn"] for name, run in compared.items()}
    assert min(neighbours, key=lambda name: neighbours[name]) == "attention-only"
    assert f"the worst, {neighbours['attention-only']:.1f} %" in told
    atoms = [compared[name] for name in ("overcomplete", "decoupled")]
    losses = f"`overcomplete` {atoms[0]['loss']:.3f}, `decoupled` {atoms[1]['loss']:.3f}"
    assert losses in told
    assert "({:.1f} and {:.1f} %; the random".format(*(100 * run["knn"] for run in atoms)) in told
    baselines = record(BENCHMARKS / f"{OPERATORS}.json")["baselines"]
    others = (100 * baselines[name]["knn"] for name in ("random baseline", "raw pixels"))
    assert "network has {:.1f}, raw pixels have {:.1f})".format(*others) in told
    for name in ("exact", "tssa", "faithful-exact"):
        assert f"{compared[name]['loss']:.3f}" in told
    (random,) = [r for r in rows_of("operators-faithful-probe") if "random" in r["subject"]]
    low, high = (f"{100 * end:.1f}" for end in random["interval"])
    assert f"{100 * random['accuracy']:.1f} % ({low} to {high})" in told
    # The short answer.
    answer = " ".join(section_of(RESULTS, "## Do layers do what they are derived to do?").split())
    assert f"(loss {own['loss']:.3f} and {plain['loss']:.3f}, probe" in answer
    assert f"{100 * own['probe']:.1f} and {100 * plain['probe']:.1f} %)" in answer
    assert f"({kept['loss']:.3f}, {100 * kept['probe']:.1f} %)" in answer
    assert f"the loss is {exact['loss']:.3f}" in answer
    facts = layers["analyses"]
    for name, form in (("faithful", "less ({:.0f} against {:.0f} %)"),
                       ("faithful-exact", "({:.1f} against {:.1f} %)")):  # fmt: skip
        pair = [-100 * facts[name][model]["rate_change"] for model in derived.MODELS]
        assert form.format(*pair) in answer
    falls = {
        name: [-100 * facts[name][model]["rate_change"] for model in derived.MODELS]
        for name in ("attention-only", "overcomplete", "decoupled", "faithful-exact")
    }
    trained, random_ones = (
        "{:.1f}, {:.1f}, {:.1f} and {:.1f} %".format(*ends)
        for ends in zip(*falls.values(), strict=True)
    )
    assert f"by {trained} against {random_ones}" in told
    assert facts["exact"]["model"]["rate_change"] > 0
    aligned = [facts[name]["model"]["aligned"] for name in list(falls)[:3]]
    assert f"({min(aligned):.2f} to {max(aligned):.2f})" in told
    many, more = facts["overcomplete"], facts["decoupled"]
    assert f"({falls['overcomplete'][0]:.1f} against {falls['overcomplete'][1]:.1f} %)" in answer
    assert f"loss of {compared['overcomplete']['loss']:.3f}" in answer
    assert f"(cosine {many['model']['aligned']:.2f})" in answer
    assert f"an error of {many['model']['rebuilt']:.2f}." in answer
    zeros, rebuilt = (
        [value for model in derived.MODELS if (value := many[model][fact]) is not None]
        for fact in ("zeros", "rebuilt")
    )
    assert f"{100 * zeros[0]:.0f} % of the codes" in answer
    assert (
        f"{100 * zeros[0]:.0f} % zeros, an error of {rebuilt[0]:.2f} (random:"
        f" {100 * zeros[1]:.0f} % and {rebuilt[1]:.2f})"
    ) in told
    own_codes = more["model"]
    assert f"ones {100 * own_codes['zeros']:.0f} % and {own_codes['rebuilt']:.2f}" in told
    published = [
        round(100 * found["model"]["zeros"])
        for name, found in facts.items()
        if name not in ("overcomplete", "decoupled", "attention-only")
    ]
    assert f"{min(published)} to {max(published)} % are zeros" in told
    for name in ("attention-only", "overcomplete"):
        assert f"to {facts[name]['model']['mirror_error_scaled']:.2f}" in told
    cosines = [f"{facts['faithful'][model]['aligned']:.2f}" for model in derived.MODELS]
    assert "by {}, untrained by {}".format(*cosines) in told
    assert "(cosine {} and {})".format(*cosines) in answer
    # What is said of all forms.
    for name, found in facts.items():
        own_facts, other = (found[model] for model in derived.MODELS)
        assert own_facts["mirror_cka"] < other["mirror_cka"], name
        assert (own_facts["rate_change"] < other["rate_change"]) == (name in falls), name
        if name in ("crate", "own-form", "tied", "attention-only", "overcomplete", "decoupled"):
            assert own_facts["aligned"] < other["aligned"] < 0.135, name


def test_what_the_coding_rate_does_is_what_was_measured() -> None:
    section = section_of(APPENDIX, "### Ten more epochs, with and without the coding rate")
    (table,) = tables_of(section)
    with (RECORDS / "cifar10-continued-layers.csv").open(newline="") as file:
        layers = list(csv.DictReader(file))

    def of_layer(model: str, measure: str, point: str, layer: int = 1) -> float:
        place = {"model": model, "side": "encoder", "layer": str(layer), "point": point}
        wanted = {**place, "measure": measure}.items()
        (row,) = [row for row in layers if wanted <= row.items()]
        return float(row["mean"])

    for name, (_, loss, probe, knn, zeros, rate) in zip(
        ("with-term", "without-term"), table[1:], strict=True
    ):
        stem = f"cifar10-continued-{name}"
        with (RECORDS / f"{stem}-metrics.csv").open(newline="") as file:
            shows(loss, [float(r["val/loss"]) for r in csv.DictReader(file) if r["val/loss"]][-1])
        for cell, kind in ((probe, "probe"), (knn, "knn")):
            (row,) = [row for row in rows_of(f"{stem}-{kind}") if row["subject"] == "model"]
            shows_accuracy(cell, row)
        shows(zeros, of_layer(name, "zero_fraction", "sparsify"), 100)
        shows(rate, of_layer(name, "coding_rate", "sparsify"))
    told = " ".join(section.split())
    fall, rise = (
        of_layer(name, "lasso_fall", "sparsify") for name in ("with-term", "without-term")
    )
    assert f"falls there by {100 * fall:.0f} %" in told
    assert f"rises by {-100 * rise:.0f} %" in told
    for name, words in (
        ("with-term", "as before, by {:.0f} and {:.0f} %"),
        ("without-term", "without the term {:.0f} and {:.0f} %"),
    ):
        falls = [
            1 - of_layer(name, "subspace_coding_rate", "compress", layer)
            / of_layer(name, "subspace_coding_rate", "input", layer)
            for layer in (0, 1)
        ]  # fmt: skip
        assert words.format(*(100 * fall for fall in falls)) in told


def encoder_means(name: str, model: str) -> dict[tuple[int, str, str], float]:
    """Means over images and heads, by layer, point and measure, of a record of the layers."""
    with (RECORDS / f"{name}.csv").open(newline="") as file:
        return {
            (int(row["layer"]), row["point"], row["measure"]): float(row["mean"])
            for row in csv.DictReader(file)
            if (row["model"], row["side"], row["head"]) == (model, "encoder", "")
            and row["layer"].isdigit()
        }


def test_simdino_is_what_was_measured() -> None:
    section = section_of(APPENDIX, "### SimDINO, three epochs")
    header = " ".join((ROOT / "configs" / "cifar10-simdino.yaml").read_text("utf-8").split())
    (table,) = tables_of(section)
    known = {}
    for kind in ("probe", "knn"):
        for row in rows_of(f"cifar10-simdino-{kind}"):
            subject = "SimDINO" if row["subject"] == "model" else row["subject"]
            features = {"cls": "class tokens", "mean": "mean of the tokens"}[row["pool"]]
            known[f"{features}, {subject}", kind] = row
    assert len(known) == 2 * (len(table) - 1)
    for name, probe, knn in table[1:]:
        shows_accuracy(probe, known[name, "probe"])
        shows_accuracy(knn, known[name, "knn"])
    with (RECORDS / "cifar10-simdino-metrics.csv").open(newline="") as file:
        epochs = [row for row in csv.DictReader(file) if row["val/loss"]]
    first, second, third = (f"{float(row['val/loss']):.2f}" for row in epochs)
    assert f"{first}, {second} and {third}" in " ".join(section.split())
    assert f"loss {first}, {second}, {third} on test images" in header.replace("# ", "")
    compression, expansion = (float(epochs[-1][f"val/{n}"]) for n in ("compression", "expansion"))
    most = float(epochs[-1]["val/largest_expansion"])
    told = f"compression {compression:.2f} (at most 1) and expansion {expansion:.2f}"
    assert f"{told} (at most {most:.2f})" in header.replace("# ", "")


def test_forty_epochs_with_the_coding_rate_are_those_that_were_measured() -> None:
    section = section_of(APPENDIX, "### Forty epochs with the coding rate, from nothing")
    table, by_layer, *_ = tables_of(section)
    told = " ".join(section.split())
    answer = " ".join(section_of(RESULTS, "## Does pre-training help?").split())
    found = {}
    with (RECORDS / "cifar10-from-nothing-metrics.csv").open(newline="") as file:
        logged = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    losses = {"cifar10-from-nothing": logged[-1]} | {
        name: record(SHIPPED[name].folder / "metrics.json")["validation"]["val/loss"]
        for name in ("cifar10-rate", "cifar10-shallow")
    }
    for stem, (_, loss, probe, knn, zeros, rate) in zip(losses, table[1:], strict=True):
        shows(loss, losses[stem])
        for cell, kind in ((probe, "probe"), (knn, "knn")):
            (row,) = [row for row in rows_of(f"{stem}-{kind}") if row["subject"] == "model"]
            shows_accuracy(cell, row)
            found[stem, kind] = 100 * row["accuracy"]
        means = encoder_means(f"{stem}-layers", "model")
        shows(zeros, means[1, "sparsify", "zero_fraction"], 100)
        shows(rate, means[1, "sparsify", "coding_rate"])
        fall = means[1, "sparsify", "lasso_fall"]
        assert f"{'falls by' if fall > 0 else 'rises by'} {abs(100 * fall):.0f} %" in told
    random = encoder_means(f"{stem}-layers", "random baseline")
    for (_, *cells), means in zip(
        by_layer[1:],
        [*(encoder_means(f"{stem}-layers", "model") for stem in losses), random],
        strict=True,
    ):
        for layer, rate, lost in zip((0, 1), cells[:2], cells[2:], strict=True):
            shows(rate, means[layer, "sparsify", "coding_rate"])
            before, after = (
                means[layer, point, "subspace_coding_rate"] for point in ("input", "compress")
            )
            shows(lost, 1 - after / before, 100)
    strong, own, plain = losses
    assert f"gain {found[own, 'knn'] - found[plain, 'knn']:.1f} points" in told
    assert f"loses {found[plain, 'probe'] - found[strong, 'probe']:.1f} points" in told
    assert f"at {found[own, 'knn']:.1f} % for neighbours and {found[own, 'probe']:.1f} %" in answer
    assert f"at {found[plain, 'knn']:.1f} and {found[plain, 'probe']:.1f} %" in answer
    assert f"at {found[strong, 'knn']:.1f} and {found[strong, 'probe']:.1f} %" in answer
    few = {}
    for stem in losses:
        (row,) = rows_of(f"{stem}-probe-50")
        few[stem] = f"{100 * row['accuracy']:.1f} %"
    said = f"the probe has {few[own]} with 0.03, {few[strong]} with 0.1 and {few[plain]} without"
    assert said in told


def test_seeds_of_the_coding_rate_are_those_that_were_measured() -> None:
    section = section_of(APPENDIX, "### Forty epochs with the coding rate, from nothing")
    (_, _, seeds, *_), told = tables_of(section), " ".join(section.split())
    found: dict[str, list[float]] = {"probe": [], "knn": []}
    for stem, (_, loss, probe, knn) in zip(
        ("cifar10-rate", "cifar10-rate-seed-1", "cifar10-rate-seed-2"), seeds[1:], strict=True
    ):
        with (RECORDS / f"{stem}-metrics.csv").open(newline="") as file:
            logged = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
        shows(loss, logged[-1])
        for cell, kind in ((probe, "probe"), (knn, "knn")):
            (row,) = [row for row in rows_of(f"{stem}-{kind}") if row["subject"] == "model"]
            shows_accuracy(cell, row)
            found[kind].append(100 * row["accuracy"])
    apart = {kind: max(values) - min(values) for kind, values in found.items()}
    said = f"{apart['probe']:.1f} points in the probe, {apart['knn']:.1f} in neighbours"
    assert f"lie close together**: {said}" in told
    within = f"lie within {apart['knn']:.1f} and {apart['probe']:.1f} points"
    assert within in " ".join(RESULTS.split())
    card = " ".join((ROOT / "docs" / "cards" / "cifar10-rate.md").read_text("utf-8").split())
    more = [f"{a:.1f} and {b:.1f} %" for _, a, b in (found["knn"], found["probe"])]
    assert f"neighbours of {more[0]} and probes of {more[1]}" in card


def test_the_probe_by_layer_is_that_of_its_record() -> None:
    (table,) = [t for t in tables_of(APPENDIX) if t[0][0] == "encoder layers passed"]
    rows = [row for row in rows_of("cifar10-probe-layers") if row["subject"] == "model"]
    by_layer = sorted(rows, key=lambda row: (row["layer"] is None, row["layer"] or 0))
    for cell, row in zip(table[1][1:], by_layer, strict=True):
        shows(cell, row["accuracy"], 100)


def test_fine_tuned_accuracies_are_those_of_their_records() -> None:
    (table,) = tables_of(section_of(APPENDIX, "### Fine-tuning"))
    for cells, suffix in zip(table[1:], ("", "-1-percent"), strict=True):
        for cell, kind in zip(cells[1:], ("finetune", "scratch"), strict=True):
            shows_accuracy(cell, record(RECORDS / f"cifar10-{kind}{suffix}.json"))


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("pools", POOLS),
        ("pools-short", POOLS_SHORT),
        ("pools-params", POOLS_PARAMS),
        ("pools-40", POOLS_40),
    ],
)
def test_the_tables_of_pools_are_those_of_their_records(place: str, name: str) -> None:
    _, _, rest = APPENDIX.partition(f"<!-- {place} -->\n")
    shown, end, _ = rest.partition(f"<!-- /{place} -->")
    assert end
    assert shown.strip() == "\n".join(pools.table_lines(record(BENCHMARKS / f"{name}.json")))
    assert f"../benchmarks/results/{name}.json" in APPENDIX


def test_pools_of_a_vitmae_of_40_epochs_are_told_as_measured() -> None:
    theirs, ours = (
        {
            (row["pool"], row["method"], bool(row.get("whitened"))): 100 * row["accuracy"]
            for row in record(BENCHMARKS / f"{name}.json")["rows"]
            if row["subject"] == subject
        }
        for name, subject in ((POOLS_40, "`vitmae-rate`"), (POOLS, "`cifar10-rate`"))
    )
    told = " ".join(APPENDIX.split())
    for cell, words in (
        (("layers", "probe", False), "`layers` {:.1f} to {:.1f} % in the probe"),
        (("layers", "knn", True), "whitened {:.1f} to {:.1f} % in neighbours"),
        (("mean", "knn", True), "mean alone, whitened, it is behind, by {:.1f} to {:.1f} %"),
    ):
        assert words.format(theirs[cell], ours[cell]) in told


def test_what_the_pool_leaves_out_is_told_as_it_was_measured() -> None:
    found = {
        (row["subject"], row["pool"], row["method"], bool(row.get("whitened"))): (
            f"{100 * row['accuracy']:.1f}"
        )
        for row in record(BENCHMARKS / f"{POOLS}.json")["rows"]
    }
    model, random = "`cifar10-shallow`", "random baseline of `cifar10-shallow`"
    probe, near = (
        {name: found[name, "layers", *kind] for name in (model, random)}
        for kind in (("probe", False), ("knn", True))
    )
    pixels = [found["raw pixels", "pixels", *kind] for kind in (("probe", False), ("knn", True))]
    readme, told = (" ".join(page.split()) for page in (README, RESULTS))
    assert f"the first has {probe[model]} and {near[model]} %" in readme
    assert f"{probe[random]} and {near[random]} %" in readme
    assert f"{pixels[0]} and {pixels[1]} %" in readme
    assert f"has {probe[model]} % in place of" in told
    assert f"have {near[model]} in place of" in told
    assert f"to {probe[random]} and {near[random]} %" in told
    assert f"raw pixels to {pixels[1]} %" in told
    gains = (float(each[model]) - float(each[random]) for each in (probe, near))
    assert "adds is {:.1f} and {:.1f} points".format(*gains) in told
    page = " ".join((ROOT / "docs" / "evaluation.md").read_text("utf-8").split())
    assert f"from {found[model, 'mean', 'probe', False]} to {probe[model]} %" in page
    assert f"with the probe: {near[model]} % for `cifar10-shallow`" in page


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (PLACE, "few-labels-amd-epyc-2-cores-2026-11-30.json"),
        (f"{PLACE}-wide", "few-labels-intel-xeon-2-cores-2026-11-30.json"),
        (f"{PLACE}-own", "few-labels-own-amd-epyc-2-cores-2026-11-30.json"),
        (f"{PLACE}-own-vit", FEW_OF_VITMAE),
        (f"{PLACE}-own-vit-wide", FEW_OF_VITMAE_WIDE),
        (f"{PLACE}-96", FEW_AT_96),
        (f"{PLACE}-more", FEW_MORE),
        (f"{PLACE}-more-neighbours", FEW_MORE),
    ],
)
def test_the_tables_of_few_labels_are_those_of_their_records(place: str, name: str) -> None:
    page = (ROOT / "docs" / "own-images.md").read_text("utf-8")
    _, _, rest = page.partition(f"<!-- {place} -->\n")
    shown, end, _ = rest.partition(f"<!-- /{place} -->")
    assert end
    lines = table_lines(record(BENCHMARKS / name), neighbours=place.endswith("-neighbours"))
    assert shown.strip() == "\n".join(lines)
    assert f"../benchmarks/results/{name}" in page


def test_the_table_of_operators_is_that_of_its_record_or_there_is_none() -> None:
    page = (ROOT / "docs" / "family.md").read_text("utf-8")
    _, _, rest = page.partition(f"<!-- {operator_cost.PLACE} -->\n")
    shown, end, _ = rest.partition(f"<!-- /{operator_cost.PLACE} -->")
    assert end
    if not shown.strip():
        assert "operator-cost-" not in page
        return
    (name,) = re.findall(r"results/(operator-cost-[\w.-]+\.json)", shown)
    kept = record(BENCHMARKS / name)
    lines = [*operator_cost.page_lines(kept), "", operator_cost.record_link(name)]
    assert shown.split() == " ".join(lines).split()
    assert (kept["dim"], kept["heads"], kept["batch"], kept["threads"]) == (768, 12, 1, 1)


# -- everywhere else ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_the_table_of_shipped_models_holds_what_is_on_their_cards(name: str) -> None:
    page = (ROOT / "docs" / "weights.md").read_text("utf-8")
    (row,) = [r for t in tables_of(page) for r in t if r[0] == f"`{name}`" and len(r) == 7]
    kept = record(SHIPPED[name].folder / "metrics.json")
    accuracies = {r["method"]: r["accuracy"] for r in kept["rows"] if r["subject"] == "model"}
    shows(row[3], kept["validation"]["val/loss"])
    shows(row[4], accuracies["probe"], 100)
    shows(row[5], accuracies["knn"], 100)


def test_what_pre_training_adds_to_few_labels_is_told_draw_by_draw() -> None:
    """Fine-tuned with 20 labels a class beside the same network from scratch, on the same draws."""
    rows = record(BENCHMARKS / "few-labels-intel-xeon-2-cores-2026-11-30.json")["rows"]
    drawn = {
        (row["set"], row["subject"]): [100 * value for value in row["values"]]
        for row in rows
        if (row["measure"], row["shots"]) == ("finetune", 20)
    }
    page = " ".join((ROOT / "docs" / "own-images.md").read_text("utf-8").split())
    told = " ".join(RESULTS.split())
    means: dict[str, list[tuple[float, float]]] = {}
    gains: dict[str, list[float]] = {}
    for subject, other in (("photos64-long", "photos64"), ("own-images", "own-images")):
        ahead, means[subject], gains[subject] = [], [], []
        for name in ("trashnet", "flowers", "pets"):
            mine, scratch = (
                drawn[name, f"{each}, layers"] for each in (subject, f"{other}, untrained")
            )
            ahead += [a - b for a, b in zip(mine, scratch, strict=True)]
            means[subject].append((sum(mine) / 3, sum(scratch) / 3))
            gains[subject].append(means[subject][-1][0] - means[subject][-1][1])
        assert len(ahead) == 9
        assert min(ahead) > 0, "in each of nine draws"
        assert f"in each of nine draws, by {min(ahead):.1f} to {max(ahead):.1f} points" in page
        first, last = (
            "{:.1f}, {:.1f} and {:.1f}".format(*each) for each in zip(*means[subject], strict=True)
        )
        assert f"`{subject}` has {first}" in page
        assert last in page
        assert "by {:.1f}, {:.1f} and {:.1f}".format(*gains[subject]) in told
    leads = [
        mine - scratch
        for (mine, _), (_, scratch) in zip(means["own-images"], means["photos64-long"], strict=True)
    ]
    lead = "by {:.1f}, {:.1f} and {:.1f}".format(*leads)
    assert f"another one {lead}" in told
    assert f"beside it `own-images` leads {lead} points" in page
    best = "{:.1f}, {:.1f} and {:.1f} %".format(*(mine for mine, _ in means["photos64-long"]))
    assert f"three sets have {best}" in told


def values_of(name: str) -> dict[tuple[str, str, str, int | None], list[float]]:
    """Accuracies in per cent, draw by draw: of a set, a subject, a measure, labels a class."""
    return {
        (row["set"], row["subject"], row["measure"], row["shots"]): [
            100 * value for value in row["values"]
        ]
        for row in record(BENCHMARKS / name)["rows"]
    }


def of_sets(numbers: Iterable[float]) -> str:
    """Numbers of the three sets as sentences have them."""
    return "{:.1f}, {:.1f} and {:.1f}".format(*numbers)


def test_what_a_vitmae_gains_by_fine_tuning_on_photographs_is_told_as_measured() -> None:
    drawn = values_of(FEW_OF_VITMAE_WIDE)
    crate = values_of("few-labels-intel-xeon-2-cores-2026-11-30.json")
    page = " ".join((ROOT / "docs" / "own-images.md").read_text("utf-8").split())
    name = "ViT-MAE, as small, 0.1"
    mine, scratch = (
        [drawn[place, f"{name}{which}, layers", "finetune", 20] for place in SETS]
        for which in ("", ", untrained")
    )
    assert f"the ViT-MAE has {of_sets(map(fmean, mine))} on trashnet, flowers and pets" in page
    ours = [crate[place, "own-images, layers", "finetune", 20] for place in SETS]
    assert f"`own-images` {of_sets(map(fmean, ours))}. From scratch the ViT" in page
    assert f"From scratch the ViT has {of_sets(map(fmean, scratch))}." in page
    ahead = [
        one - other
        for draws in zip(mine, scratch, strict=True)
        for one, other in zip(*draws, strict=True)
    ]
    won = sum(a > 0 for a in ahead)
    assert f"scratch in {won} of nine draws, by up to {max(ahead):.1f} points" in page


def test_the_sets_of_photographs_are_as_large_as_is_said() -> None:
    page = (ROOT / "docs" / "own-images.md").read_text("utf-8")
    (table,) = [table for table in tables_of(page) if table[0][:2] == ["set", "classes"]]
    known = {
        row["set"]: (f"{row['train_images']:,}", f"{row['test_images']:,}")
        for row in record(BENCHMARKS / FEW_MORE)["rows"]
    }
    assert {name: (train, test) for name, _, train, test, _ in table[1:]} == known


def test_what_five_and_a_hundred_labels_gain_is_told_as_measured() -> None:
    drawn = values_of(FEW_MORE)
    page = " ".join((ROOT / "docs" / "own-images.md").read_text("utf-8").split())

    def both(measure: str, shots: int) -> list[tuple[list[float], list[float]]]:
        mine, other = "photos64-long, layers", "photos64-long, untrained, layers"
        return [
            (drawn[name, mine, measure, shots], drawn[name, other, measure, shots]) for name in SETS
        ]

    def gains(measure: str, shots: int) -> list[float]:
        return [fmean(mine) - fmean(other) for mine, other in both(measure, shots)]

    def ahead(shots: int) -> list[float]:
        return [a - b for pair in both("finetune", shots) for a, b in zip(*pair, strict=True)]

    hundred = [of_sets(map(fmean, each)) for each in zip(*both("finetune", 100), strict=True)]
    assert f"has {hundred[0]} on trashnet, flowers and pets, from scratch {hundred[1]}" in page
    assert len(ahead(100)) == 9
    assert (
        f"in each of nine draws, by {min(ahead(100)):.1f} to {max(ahead(100)):.1f} points" in page
    )
    assert min(ahead(100)) > 0
    assert f"The probe gains {of_sets(gains('probe', 100))} points" in page
    five = [of_sets(map(fmean, each)) for each in zip(*both("finetune", 5), strict=True)]
    assert f"{five[0]} to {five[1]}, ahead in {sum(a > 1e-9 for a in ahead(5))} of nine" in page
    probe = [of_sets(map(fmean, each)) for each in zip(*both("probe", 5), strict=True)]
    assert f"has {probe[0]}, untrained {probe[1]}" in page
    near = {shots: of_sets(gains("knn", shots)) for shots in (5, 20, 100)}
    assert f"with 5 a class {near[5]} points" in page
    assert f"with 20 {near[20]}, with 100 {near[100]}." in page
    told = " ".join(RESULTS.split())
    by = of_sets(gains("finetune", 100))
    assert f"with 100 by {by}" in told


def test_what_larger_images_gain_is_told_as_measured() -> None:
    small, large = values_of(FEW_MORE), values_of(FEW_AT_96)
    page = (ROOT / "docs" / "own-images.md").read_text("utf-8")
    told = " ".join(section_of(page, "### At 96 px").split())
    mine, other = "photos64-long, layers", "photos64-long, untrained, layers"

    def gains(measure: str, shots: int | None) -> str:
        key = (mine, measure, shots)
        return of_sets(fmean(large[name, *key]) - fmean(small[name, *key]) for name in SETS)

    tuned = {
        subject: [fmean(large[name, subject, "finetune", 20]) for name in SETS]
        for subject in (mine, other)
    }
    before = [fmean(small[name, mine, "finetune", 20]) for name in SETS]
    assert f"fine-tuned {tuned[mine][2]:.1f}, at 64 px {before[2]:.1f};" in told
    first = "{:.1f} and {:.1f} are level".format(*tuned[mine])
    assert f"{first} with {before[0]:.1f} and {before[1]:.1f}." in told
    assert f"100 labels a class gains {gains('probe', 100)} points" in told
    assert f"neighbours, whitened, {gains('knn, whitened', None)}." in told
    assert f"from scratch the same network has {of_sets(tuned[other])} there" in told
    ahead = [
        a - b
        for name in SETS
        for a, b in zip(
            *(large[name, subject, "finetune", 20] for subject in (mine, other)), strict=True
        )
    ]
    assert f"in {sum(a > 0 for a in ahead)} of nine draws, by up to {max(ahead):.1f}" in told


def test_with_twenty_labels_two_machines_fine_tune_to_the_same_accuracies() -> None:
    first = values_of("few-labels-intel-xeon-2-cores-2026-11-30.json")
    again = values_of(FEW_MORE)
    for name in SETS:
        for subject, same in (("photos64-long", "photos64-long"),
                              ("photos64, untrained", "photos64-long, untrained")):  # fmt: skip
            before = first[name, f"{subject}, layers", "finetune", 20]
            assert before == again[name, f"{same}, layers", "finetune", 20]


def test_what_a_vitmae_gains_on_photographs_is_told_as_measured() -> None:
    page = " ".join((ROOT / "docs" / "own-images.md").read_text("utf-8").split())
    with_term = values_of(FEW_OF_VITMAE)
    others = values_of("few-labels-own-amd-epyc-2-cores-2026-11-30.json") | {
        key: values for key, values in with_term.items() if key[1] == "ViT-MAE, as small"
    }

    def mean(name: str, subject: str, measure: str, shots: int | None) -> float:
        return fmean((with_term if "0.1" in subject else others)[name, subject, measure, shots])

    vit = ("ViT-MAE, as small", "ViT-MAE, as small, 0.1")
    near = {
        name: [mean(name, subject, "knn", None) for subject in vit]
        for name in ("trashnet", "flowers", "pets")
    }
    assert "from {:.1f} to {:.1f} on trashnet".format(*near["trashnet"]) in page
    assert "from {:.1f} to {:.1f} on flowers".format(*near["flowers"]) in page
    assert "from {:.1f} to {:.1f} on pets".format(*near["pets"]) in page
    first, last = ([mean(name, each, "probe", 20) for name in SETS] for each in vit)
    gains = of_sets(b - a for a, b in zip(first, last, strict=True))
    assert f"the probe with 20 labels by {gains} points" in page
    ours = of_sets(mean(name, "own-images", "probe", 20) for name in SETS)
    assert f"leads in the probe with 20 labels: {ours} to {of_sets(last)}" in page


def test_what_three_seeds_of_a_vitmae_and_its_fine_tuning_say_is_told_as_measured() -> None:
    before, after = (
        record(BENCHMARKS / f"{name}.json")
        for name in ("quality-objective-amd-epyc-2-cores-2026-11-30", VITMAE_PARAMS)
    )
    ours = list(before["compared"]["crate-0.1"].values())
    theirs = [
        *before["compared"]["vitmae-params-0.1"].values(),
        *after["compared"]["vitmae-params-0.1"].values(),
    ]
    assert len(ours) == len(theirs) == 3
    told = " ".join(section_of(APPENDIX, "#### More of the ViT-MAE as small").split())
    for kind, words in (
        ("probe", "the probe is {:.1f} to {:.1f} %"),
        ("knn", "neighbours, as they are, {:.1f} to {:.1f}"),
        ("probe-50", "50 labels a class {:.1f} to {:.1f}"),
    ):
        each = [[100 * run[kind] for run in runs] for runs in (ours, theirs)]
        assert words.format(*map(fmean, each)) in told
        low, high = sorted(each)
        assert max(low) < min(high), "no seed of one lies among those of the other"

    def tuned(table: Any, model: str) -> str:
        return "{:.1f}, {:.1f} and {:.1f}".format(
            *(100 * table["finetuned"][share][model]["1"] for share in ("0.01", "0.1", "1"))
        )

    scratch = "{:.1f}, {:.1f} and {:.1f}".format(
        *(
            100 * record(RECORDS / f"vitmae-params-scratch-{share}-percent.json")["accuracy"]
            for share in (1, 10, 100)
        )
    )
    assert f"{tuned(after, 'vitmae-params-0.1')} % (CRATE {tuned(before, 'crate-0.1')})" in told
    without = f"{tuned(after, 'vitmae-params')} ({tuned(before, 'crate')})"
    assert (
        f"without the term {without}, from scratch {scratch} ({tuned(before, 'scratch')};" in told
    )


def test_a_vitmae_of_40_epochs_with_the_term_is_told_as_measured() -> None:
    section = section_of(APPENDIX, "#### A ViT-MAE as small, 40 epochs with the coding rate")
    (table,) = tables_of(section)
    plain = record(BENCHMARKS / f"{GPU}.json")["compared"]["vitmae-shallow"]["0"]
    shown = {}
    for label, loss, probe, knn, few in table[1:]:
        if label == "ViT-MAE as small, gamma 0":
            for cell, value in ((probe, plain["probe"]), (knn, plain["knn"])):
                shows(cell, value, 100)
            shows(loss, plain["loss"])
            continue
        stem = {
            "CRATE-MAE, gamma 0.03": "cifar10-rate", "CRATE-MAE, gamma 0": "cifar10-shallow",
        }.get(label, "vitmae-40")  # fmt: skip
        subject = "random baseline" if label.startswith("random") else "model"
        for cell, kind in ((probe, "probe"), (knn, "knn")):
            (row,) = [row for row in rows_of(f"{stem}-{kind}") if row["subject"] == subject]
            shows_accuracy(cell.replace("*", ""), row)
            shown[label, kind] = 100 * row["accuracy"]
        if few:
            (row,) = rows_of(f"{stem}-probe-50")
            shows(few, row["accuracy"], 100)
        if loss and stem == "vitmae-40":
            shows(loss, losses_of(stem)[-1])
        elif loss:
            shows(loss, record(SHIPPED[stem].folder / "metrics.json")["validation"]["val/loss"])
    told, name = " ".join(section.split()), "ViT-MAE as small, gamma 0.03"
    gained = shown[name, "knn"] - 100 * plain["knn"]
    assert f"{gained:.1f} points in neighbours**" in told
    assert f"takes {100 * plain['probe'] - shown[name, 'probe']:.1f} in its probe" in told
    ahead, behind = (shown[name, k] - shown["CRATE-MAE, gamma 0.03", k] for k in ("knn", "probe"))
    assert f"ahead of CRATE-MAE by {ahead:.1f} in neighbours" in told
    assert f"{-behind:.1f} behind in the probe" in told


def test_fine_tuning_after_40_epochs_is_what_was_measured() -> None:
    section = section_of(APPENDIX, "#### Fine-tuned after 40 epochs")
    (table,) = tables_of(section)
    for row, (_, stem) in zip(table[1:], FINETUNED_LONG.items(), strict=True):
        for cell, part in zip(row[1:], ("1-percent", "10-percent", "100-percent", "50-labels"),
                              strict=True):  # fmt: skip
            link = re.search(r"\]\(results/(.+?)\)", cell)
            assert link is not None, cell
            assert link[1] == f"{stem}-{part}.json"
            found = record(RECORDS / link[1])
            shows_accuracy(cell.replace(f"(results/{link[1]})", ""), found)
            assert found["num_train"] == {"1": 500, "10": 5000, "100": 50_000, "50": 500}[
                part.partition("-")[0]
            ]  # fmt: skip
    assert [row[0] for row in table[1:]] == list(FINETUNED_LONG)
    told = " ".join(section.split())
    with_term, without, scratch, vitmae, vit = (
        [
            100 * record(RECORDS / f"{stem}-{part}.json")["accuracy"]
            for part in ("1-percent", "10-percent", "100-percent", "50-labels")
        ]
        for stem in FINETUNED_LONG.values()
    )
    for first, second, words in zip(
        with_term, without,
        ("{:.1f} and {:.1f} % with 1 %", "{:.1f} and {:.1f} with 10", "{:.1f} and {:.1f} with all",
         "{:.1f} and {:.1f} by the longer"),
        strict=True,
    ):  # fmt: skip
        assert words.format(first, second) in told
    ahead = [theirs - ours for theirs, ours in zip(vitmae, with_term, strict=True)]
    said = "by {:.1f}, {:.1f} and {:.1f} points, and by {:.1f} with the longer".format(*ahead)
    assert said in told
    from_nothing = [theirs - ours for theirs, ours in zip(vit, scratch, strict=True)]
    assert f"ahead by {min(from_nothing):.1f} to {max(from_nothing):.1f}" in told
    for before, runs, words in (
        (scratch, (with_term, without), "worth {:.0f} to {:.0f} points to them"),
        (vit, (vitmae,), "worth {:.0f} to {:.0f} points to it"),
    ):
        worth = [one - other for run in runs for one, other in zip(run, before, strict=True)]
        assert words.format(min(worth), max(worth)) in told
    answer = " ".join(RESULTS.split())
    assert f"by {vitmae[0]:.1f} to {with_term[0]:.1f} %, with all by {vitmae[2]:.1f} to" in answer
    assert f"has {with_term[1]:.1f} % with a tenth of the labels and {with_term[2]:.1f} %" in answer
    assert f"the same network has {scratch[1]:.1f} and {scratch[2]:.1f} %" in answer


@pytest.mark.parametrize("name", SHIPPED)
def test_a_card_holds_the_notes_that_were_written_for_it(name: str) -> None:
    notes = (ROOT / "docs" / "cards" / f"{name}.md").read_text("utf-8")
    assert notes.strip() in SHIPPED[name].card


@pytest.mark.parametrize(
    ("recipe", "model"),
    [
        ("cifar10", "cifar10-small"), ("cifar10-shallow", "cifar10-shallow"),
        ("cifar10-overcomplete", "cifar10-overcomplete"),
    ],
)  # fmt: skip
def test_a_recipe_expects_what_was_measured(recipe: str, model: str) -> None:
    header = " ".join(
        (ROOT / "configs" / f"{recipe}.yaml").read_text("utf-8").replace("\n#", " ").split()
    )
    kept = record(SHIPPED[model].folder / "metrics.json")
    assert f"{kept['validation']['val/loss']:.3f} at the end" in header
    accuracy = next(r["accuracy"] for r in kept["rows"] if r["subject"] == "model")
    found = re.search(r"linear probe ([\d.]+) %", header)
    assert found is not None
    shows(found[1], accuracy, 100)


CARDS = [weights.folder / "README.md" for weights in SHIPPED.values()]
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize(
    "path", [*PAGES, *CARDS, *RECIPES], ids=lambda path: str(path.relative_to(ROOT))
)
def test_whoever_tells_an_accuracy_on_cifar10_tells_of_the_jpeg_copy(path: Path) -> None:
    text = " ".join(path.read_text("utf-8").replace("\n#", " ").split())
    if re.search("cifar-?10", text, re.IGNORECASE) and re.search(r"\d\d\.\d+ ?%", text):
        assert re.search(r"JPEG copy.{,40}quality 75, halved chroma", text), path
