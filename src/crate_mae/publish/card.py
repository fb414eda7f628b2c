"""Model cards: what a model is, how it was made, what it reached, what it is for and not for."""

import re
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from crate_mae.evaluation.rows import SHOWN
from crate_mae.publish.facts import RECIPE, Facts
from crate_mae.publish.redact import hub_dataset
from crate_mae.runs.contents import is_finite

_LOADING = re.compile(
    r'(    from crate_mae import load_model\n    model = load_model\(")(.+)("\)\n)'
)
_LICENSED = re.compile(r"^## Licence\n\n(\S+)\. The training images keep their own terms\.$", re.M)

TASK = {"CrateMAE": "image-feature-extraction", "CrateClassifier": "image-classification"}


def metadata(facts: Facts, *, licence: str | None = None) -> str:
    """The block between `---` lines that the Hub reads at the beginning of a card."""
    dataset = hub_dataset(section(facts.metrics, "data").get("source"))
    kind = facts.weights["model"]
    tags = ["crate", "white-box", "safetensors"]
    tags.insert(0, "masked-autoencoder" if kind == "CrateMAE" else "image-classification")
    data = ModelCardData(
        license=licence,
        library_name="crate-mae",
        pipeline_tag=TASK[kind],
        tags=tags,
        datasets=[dataset] if dataset else None,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def model_card(
    facts: Facts,
    *,
    name: str,
    title: str | None = None,
    licence: str | None = None,
    data_name: str | None = None,
    notes: str | None = None,
) -> str:
    """The card of a model as Markdown, its metadata first.

    `name` is what `load_model` takes and `title` what stands on top (the last part of the name).
    `data_name` says in words what the images are, which an address of files does not; `notes` are
    own words in Markdown, put in front of what is known of every model of this kind. What was not
    measured is not told.
    """
    parts = [
        f"# {plain(title or name.rpartition('/')[2])}",
        _opening(facts, name),
        "## The model",
        table_of(_model_rows(facts)),
    ]
    if rows := _training_rows(facts, data_name):
        parts += ["## How it was made", table_of(rows)]
    if facts.recipe is not None:
        parts.append(_repeat(facts))
    parts += ["## What it reaches", *result_parts(facts.metrics)]
    parts += [notes.strip()] if notes and notes.strip() else []
    parts += ["## What it is for, and what not", *_use(facts), "## Licence", _licence(licence)]
    return metadata(facts, licence=licence) + "\n" + "\n\n".join(parts) + "\n"


def with_metadata(text: str, facts: Facts, *, licence: str | None = None) -> str:
    """A card written before, with our metadata in front when it has none of its own.

    A licence goes into metadata without one, and where our card says that none was named. Raises
    ValueError when the card names another licence, and for metadata that are no YAML.
    """
    found, named = _metadata_of(text), licence_of(text)
    empty = found is not None and found.get("license", "") is None
    if licence is not None and (empty or named not in (None, licence)):
        raise ValueError(
            f"the card names another licence, {named or 'an empty one'}: change it there, or leave"
            " --licence out"
        )
    if licence is not None and named is None:
        text = text.replace(_licence(None), _licence(licence))
    if found is None:
        return metadata(facts, licence=licence or named) + "\n" + text
    if licence is not None and "license" not in found:
        text = text.replace("---\n", f"---\nlicense: {licence}\n", 1)
    return text


def licence_of(text: str) -> str | None:
    """The licence that a card names, in its metadata or as ours do below; None where it does not.

    Raises ValueError for metadata that are no YAML.
    """
    named = (_metadata_of(text) or {}).get("license")
    if named is not None:
        return str(named).lower()
    below = _LICENSED.search(text)
    return None if below is None else below[1].lower()


def with_name(text: str, name: str) -> str:
    """A card of ours for weights that lie somewhere else now.

    `name` stands in the line that loads them, and as title where the old name was the title. A card
    without our lines stays as it is.
    """
    found = _LOADING.search(text)
    if found is None or found[2] == name:
        return text
    text = f"{text[: found.start(2)]}{name}{text[found.end(2) :]}"
    old, new = (f"# {plain(place.rpartition('/')[2])}" for place in (found[2], name))
    return re.sub(rf"^{re.escape(old)}$", lambda _: new, text, count=1, flags=re.MULTILINE)


def loaded_names(text: str) -> list[str]:
    """The names that a card passes to `load_model`, each once."""
    return list(dict.fromkeys(re.findall(r"""load_model\(\s*["']([^"'\n]+)["']""", text)))


def _metadata_of(text: str) -> dict[str, Any] | None:
    block = re.match(r"---\n(.*?)^---[ \t]*$", text, re.DOTALL | re.MULTILINE)
    if block is None:
        return None
    try:
        found = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        raise ValueError(
            f"the card's metadata, between its --- lines, are no YAML: {error}"
        ) from error
    return {} if found is None else found if isinstance(found, dict) else None


def _opening(facts: Facts, name: str) -> str:
    config = facts.weights["config"]
    height, width = config["image_size"]
    images = f"{height} x {width} pixel images of {counted(config['channels'], 'channel')}"
    atoms = config.get("overcomplete", 1)
    other = " with overcomplete dictionaries (not the paper's layers)" if atoms > 1 else ""
    kind = f"A CRATE-MAE{other}, encoder and decoder, for {images}"
    use = "features = model.encode(images)"
    if facts.weights["model"] == "CrateClassifier":
        kind = f"A classifier on a CRATE encoder{other}, for {images}"
        use = "scores = model(images)"
    return (
        f"{kind}: a white-box transformer whose every layer compresses tokens toward learned"
        " subspaces and sparsifies them in a learned dictionary.\n\n"
        "    from crate_mae import load_model\n"
        f'    model = load_model("{name}")\n'
        f"    {use}"
    )


def _model_rows(facts: Facts) -> list[tuple[str, str]]:
    config, preprocess = facts.weights["config"], facts.weights["preprocess"]
    layers, heads = str(config["depth"]), str(config["num_heads"])
    if facts.weights["model"] == "CrateMAE":
        layers += f" + {config['decoder_depth']} (encoder + decoder)"
        if config["decoder_num_heads"] != config["num_heads"]:
            heads += f" + {config['decoder_num_heads']}"
    mean, std = (", ".join(f"{value:.4g}" for value in preprocess[key]) for key in ("mean", "std"))
    target = "normalised by patch" if config["norm_pix_loss"] else "raw pixels"
    size = f"{facts.weights['parameters'] / 1e6:.2f} million parameters"
    patch = " x ".join(map(str, config["patch_size"]))
    atoms = config.get("overcomplete", 1)
    words = f"{atoms} x {config['dim']} atoms, two ISTA steps from 0 and a skip (not of the paper)"
    return [
        ("size", f"{size}: width {config['dim']}, heads {heads}, layers {layers}"),
        ("patches", f"{patch} pixels"),
        ("step size and sparsity", f"eta {config['step_size']}, lambda {config['sparsity']}"),
        *([("dictionaries", words)] if atoms > 1 else []),
        ("output map, mask tokens", f"{config['output_projection']}, {config['mask_tokens']}"),
        *([("predicts", target)] if facts.weights["model"] == "CrateMAE" else []),
        ("images are normalised with", f"mean {mean}; std {std}; done by every command"),
        ("SHA-256 of `model.safetensors`", facts.sha256),
    ]


def _training_rows(facts: Facts, data_name: str | None) -> list[tuple[str, str]]:
    metrics, recipe = facts.metrics, facts.recipe or {}
    data, versions = section(metrics, "data"), section(metrics, "versions")
    optim, masking = section(recipe, "optim"), section(recipe, "masking")
    address = " ".join(str(data[key]) for key in ("source", "split") if data.get(key))
    images = counted(data.get("images"), "image")
    removed = masking.get("ratio")
    rows = [
        ("data", ", ".join(filter(None, (data_name, f"`{address}`" if address else None, images)))),
        ("steps", _steps(metrics, optim)),
        (
            "patches removed",
            f"{100 * removed:.3g} %, {masking.get('kind')}" if is_finite(removed) else "",
        ),
        ("optimiser", _optimiser(optim)),
        ("seed", str(recipe.get("seed", ""))),
        ("software", _software(versions)),
        ("commit", str(versions.get("git") or "")),
        ("finished", "no: a checkpoint on the way" if metrics.get("finished") is False else ""),
    ]
    return [(what, value) for what, value in rows if value]


def _steps(metrics: dict[str, Any], optim: dict[str, Any]) -> str:
    parts = []
    if isinstance(metrics.get("steps"), int):
        parts.append(f"{metrics['steps']:,} optimiser steps")
    if optim.get("epochs") is not None and optim.get("batch_size") is not None:
        parts.append(f"{optim['epochs']} epochs, {optim['batch_size']} images a step")
    return ", ".join(parts)


def _optimiser(optim: dict[str, Any]) -> str:
    if not is_finite(optim.get("base_lr")):
        return ""
    return (
        f"AdamW, learning rate {optim['base_lr']:g} per 256 images, weight decay"
        f" {optim.get('weight_decay')}, {optim.get('warmup_epochs')} epochs of warm-up"
    )


def _software(versions: dict[str, Any]) -> str:
    named = (("crate-mae", "crate_mae"), ("torch", "torch"))
    return ", ".join(f"{name} {versions[key]}" for name, key in named if versions.get(key))


def _repeat(facts: Facts) -> str:
    verb = "pretrain" if facts.weights["model"] == "CrateMAE" else "finetune"
    return (
        f"All settings are in [`{RECIPE}`]({RECIPE}); where `PATH` stands, name your own place:\n\n"
        f"    crate-mae {verb} --config {RECIPE} --data.source ADDRESS"
    )


def _use(facts: Facts) -> list[str]:
    if facts.weights["model"] == "CrateMAE":
        use = (
            "**For** completing masked images, features of images like those it was trained on,"
            " study of what each layer does (`crate-mae analyze`), and as a start for other"
            " training (`crate-mae pretrain --init-from`, `crate-mae finetune`)."
        )
        limits = (
            "**Not for** telling what is in an image without further training: predicted pixels are"
            " a mean over all that could be there, so completions are smooth and no evidence of"
            " what was hidden."
        )
    else:
        use = "**For** naming the class of images like those it was trained on."
        limits = (
            "**Not for** images of other kinds: it answers with one of its classes whatever it is"
            " shown, and its scores are not calibrated."
        )
    return [
        use,
        f"{limits} Decisions about people are outside of what it was made and tested for. It"
        " carries whatever bias the choice of its training images has; no number above measures"
        " that.",
    ]


def _licence(licence: str | None) -> str:
    if licence is None:
        return "None has been named: ask whoever published these weights before you use them."
    return f"{'MIT' if licence == 'mit' else licence}. The training images keep their own terms."


def section(values: dict[str, Any], key: str) -> dict[str, Any]:
    """The named values below a key; none for anything else that stands there."""
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def table_of(rows: list[tuple[str, str]]) -> str:
    """A Markdown table of names and values; a value may hold Markdown, but no HTML."""
    lines = [f"| {what} | {in_cell(value)} |" for what, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines])


def counted(number: Any, what: str) -> str:
    """Such as "1 image" and "2,000 images"; "" for what is no whole number."""
    if not isinstance(number, int) or isinstance(number, bool):
        return ""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def in_cell(text: str) -> str:
    """Markdown on one line that cannot leave its cell, and no HTML."""
    escaped = " ".join(text.split()).replace("|", r"\|")
    return escaped.replace("<", "&lt;").replace(">", "&gt;")


def plain(value: Any) -> str:
    """A value from a file on one line, with nothing in it that Markdown or HTML would act on."""
    text = re.sub(r"([\\`*_\[\]])", r"\\\1", str("" if value is None else value))
    return in_cell(text)


def result_parts(found: dict[str, Any]) -> list[str]:
    """Paragraphs and tables on what METRICS holds, or the sentence that it holds nothing."""
    rows = [row for row in found.get("rows") or [] if is_finite(row.get("accuracy"))]
    parts = [
        *_losses(section(found, "validation")),
        *_completion(section(found, "psnr")),
        *_comparison(rows),
        *_test(section(found, "test")),
    ]
    if not parts:
        return ["Nothing that was measured on these very weights is recorded here."]
    if not any(isinstance(row.get("seeds"), list) and len(row["seeds"]) > 1 for row in rows):
        parts.append(
            "One training run and one seed: another seed moves every number by an unknown amount."
            " Intervals (95 %, Wilson) are the sampling error of the test images alone."
        )
    return parts


def _losses(values: dict[str, Any]) -> list[str]:
    if not is_finite(values.get("val/loss")):
        return []
    if is_finite(values.get("val/accuracy")):
        return [
            f"Held-out images at the end: loss {values['val/loss']:.4g}, accuracy"
            f" {values['val/accuracy']:.2%}."
        ]
    beside = [
        f"{words} {values[key]:.4g}"
        for key, words in (
            ("val/mean_colour", "the one best colour"),
            ("val/patch_mean", "the true mean of each patch, which no model is told,"),
        )
        if is_finite(values.get(key))
    ]
    told = f" ({'; '.join(beside)})" if beside else ""
    return [
        f"Mean squared error on removed patches of held-out images under fixed masks:"
        f" {values['val/loss']:.4g}{told}, in units of the model's normalised pixels."
    ]


def _completion(found: dict[str, Any]) -> list[str]:
    if not is_finite(found.get("mean")):
        return []
    count = counted(found.get("images"), "held-out image") or "held-out images"
    return [f"PSNR on removed patches: {found['mean']:.2f} dB, mean over {count}."]


def _comparison(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    heads = ["features of", "method", "accuracy", "95 % interval", "layer", "pool", "width"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        spread = f" ± {row['std']:.2%}" if is_finite(row.get("std")) else ""
        cells = [
            plain(row.get("subject")),
            SHOWN.get(str(row.get("method")), plain(row.get("method"))),
            f"{row['accuracy']:.2%}{spread}",
            _interval(row),
            _layer(row),
            plain(row.get("pool")),
            plain(row.get("dim")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [f"Frozen features: {_counts(rows[0])}.", "\n".join(lines)]


def _layer(row: dict[str, Any]) -> str:
    if row.get("pool") == "pixels":
        return ""
    return "final" if row.get("layer") is None else plain(row["layer"])


def _test(found: dict[str, Any]) -> list[str]:
    if not is_finite(found.get("accuracy")):
        return []
    return [
        f"Test, made once at the end: {found['accuracy']:.2%} ({_interval(found)}),"
        f" {_counts(found)}."
    ]


def _counts(row: dict[str, Any]) -> str:
    parts = [
        counted(row.get("num_train"), "training image"),
        counted(row.get("num_test"), "test image"),
    ]
    if isinstance(row.get("num_classes"), int):
        parts.append(f"{row['num_classes']} classes")
    if is_finite(row.get("chance")):
        parts.append(f"the most frequent class alone gives {row['chance']:.2%}")
    return ", ".join(filter(None, parts)) or "counts were not recorded"


def _interval(row: dict[str, Any]) -> str:
    ends = row.get("interval")
    if not isinstance(ends, list) or len(ends) != 2 or not all(map(is_finite, ends)):
        return ""
    return f"{ends[0]:.1%} to {ends[1]:.1%}"
