"""Model cards: what a model is, how it was made, what it reached, what it is for and not for.

The prose stands in `card.md.jinja`, filled by `ModelCard.from_template`.
"""

import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from crate_mae.common.escaping import code_span, in_cell, in_quotes, markdown
from crate_mae.common.plain_tables import Table
from crate_mae.common.values import is_count, is_finite, named_values_at
from crate_mae.common.yaml_files import load_yaml
from crate_mae.evaluation.comparison import (
    LONG_NAMES,
    comparison_layout,
    counts_text,
    interval_text,
)
from crate_mae.models.config import ModelConfig
from crate_mae.publish.facts import RECIPE, Facts
from crate_mae.publish.redact import address_and_split, hub_dataset
from crate_mae.publish.ways import masking_text, plainest, told, unusual
from crate_mae.weights.one_folder import CLASSES, unsupported_by_timm
from crate_mae.weights.shipped import SHIPPED
from crate_mae.weights.weights_folder import find_weights

_LOADING = re.compile(
    r'(    from crate_mae import load_model\n    model = load_model\(")(.+)("\)\n)'
)
_LICENSED = re.compile(r"^## Licence\n\n(\S+)\. The training images keep their own terms\.$", re.M)

TASK = {
    "CrateMAE": "image-feature-extraction",
    "CrateEncoder": "image-feature-extraction",
    "CrateClassifier": "image-classification",
    "CrateSegmenter": "image-segmentation",
}
TAG = {
    "CrateMAE": "masked-autoencoder",
    "CrateEncoder": "self-supervised",
    "CrateClassifier": "image-classification",
    "CrateSegmenter": "semantic-segmentation",
}

LISTED = 20
"""Classes of pixels that a card names."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a model comes from, by the Hub's names, where its run does not tell it."""

    base_model: str | None = None
    """The model whose weights its training began with."""
    trained_on: tuple[str, ...] = ()
    """The data sets of its training images; by default the one that the run's address names."""

    def __post_init__(self) -> None:
        for name in filter(None, (self.base_model, *self.trained_on)):
            check_hub_name(name)


UNKNOWN = Origin()
"""Nothing is told of where a model comes from."""


def check_hub_name(name: str) -> str:
    """A name that the Hub may have, NAME or OWNER/NAME; ValueError for another."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"{name!r} is no name on the Hub: write OWNER/NAME ({error})") from error
    return name


def card_data(
    facts: Facts,
    *,
    name: str,
    licence: str | None = None,
    dataset: str | None = None,
    origin: Origin = UNKNOWN,
) -> ModelCardData:
    """What the Hub reads of a card: licence, origin, tags, task, and the numbers that it shows.

    `name` is the model's, `dataset` what the images of the results are called; by default their
    public address.
    """
    found = hub_dataset(named_values_at(facts.metrics, "data").get("source"))
    trained_on = origin.trained_on or ((found,) if found else ())
    kind = facts.weights["model"]
    config = ModelConfig.from_dict(facts.weights["config"])
    pool = find_weights(facts.folder)[1].get("classifier", {}).get("pool")
    in_timm = kind in CLASSES and not unsupported_by_timm(config, pool)
    return ModelCardData(
        license=licence,
        library_name="transformers" if kind in CLASSES else "crate-mae",
        pipeline_tag=TASK[kind],
        tags=[
            TAG[kind], "crate", "crate-mae", *(["timm"] if in_timm else []), "white-box",
            "safetensors",
        ],
        base_model=origin.base_model,
        datasets=list(trained_on) or None,
        model_name=name.rpartition("/")[2],
        eval_results=results_of(facts, dataset) or None,
    )  # fmt: skip


def results_of(facts: Facts, dataset: str | None = None) -> list[EvalResult]:
    """The model's own results: masked loss, frozen features by method, the test of a classifier.

    Of several rows of a method it is the plain one, else the first; its metric's name says what is
    not plain about it, so that nobody takes it for a result of the usual way.
    """
    metrics, size = facts.metrics, _image_size(facts)
    results = []

    def add(metric: tuple[str, str], value: float, task: tuple[str, str], tested_on: Any) -> None:
        address, split = address_and_split(tested_on if isinstance(tested_on, str) else "")
        name = dataset or address or "images without a name"
        results.append(
            EvalResult(
                task_type=task[0],
                task_name=task[1],
                dataset_type=hub_dataset(address) or re.sub(r"[^a-z0-9]+", "-", name.lower()),
                dataset_name=name,
                dataset_split=split,
                metric_type=metric[0],
                metric_name=metric[1],
                metric_value=value,
            )
        )

    loss = named_values_at(metrics, "validation").get("val/loss")
    if facts.weights["model"] == "CrateMAE" and is_finite(loss):
        data = named_values_at(metrics, "data")
        add(
            ("mse", "mean squared error on removed patches, in units of normalised pixels"),
            loss,
            ("image-feature-extraction", "Completion of masked images"),
            f"{data.get('source') or ''} validation",
        )
    for method, title in LONG_NAMES.items():
        row = plainest(_rows(metrics), method, "model", size)
        if row is not None:
            task = ("image-classification", "Image classification on frozen features")
            name = ", ".join(["accuracy", title, *unusual(row, size)])
            add(("accuracy", name), row["accuracy"], task, row.get("tested_on"))
    test = named_values_at(metrics, "test")
    if is_finite(test.get("accuracy")):
        task = ("image-classification", "Image classification")
        add(("accuracy", "test accuracy"), test["accuracy"], task, test.get("tested_on"))
    if is_finite(test.get("mean_iou")):
        task = ("image-segmentation", "Semantic segmentation")
        add(("mean_iou", "test mean IoU"), test["mean_iou"], task, test.get("tested_on"))
    return results


def model_card(
    facts: Facts,
    *,
    name: str,
    title: str | None = None,
    licence: str | None = None,
    data_name: str | None = None,
    dataset: str | None = None,
    notes: str | None = None,
    origin: Origin = UNKNOWN,
) -> str:
    """The card of a model as Markdown, its metadata first.

    `name` is what `load_model` takes and `title` what stands on top (the last part of the name).
    `data_name` says in words what the training images are, which an address of files does not, and
    `dataset` what the images of the results are called on the Hub; `notes` are own words in
    Markdown, put in front of what is known of every model of this kind. What was not measured is
    left out.
    """
    metrics, config = facts.metrics, facts.weights["config"]
    height, width = _image_size(facts)
    rows, test = _rows(metrics), named_values_at(metrics, "test")
    if dataset is not None:
        rows = [_tested_on(dataset, row) for row in rows]
        test = _tested_on(dataset, test)
    card = ModelCard.from_template(
        card_data(facts, name=name, licence=licence, dataset=dataset, origin=origin),
        template_str=files("crate_mae.publish").joinpath("card.md.jinja").read_text("utf-8"),
        title=markdown(title or name.rpartition("/")[2]),
        name=in_quotes(name),
        classifier=facts.weights["model"] == "CrateClassifier",
        encoder=facts.weights["model"] == "CrateEncoder",
        segmenter=_segmenter(facts.weights.get("segmenter")),
        variant=" with overcomplete dictionaries (not the paper's layers)"
        if config.get("overcomplete", 1) > 1
        else "",
        images=f"{height} x {width} pixel images of {counted(config['channels'], 'channel')}",
        model=table_of(_model_rows(facts)),
        training=table_of(_training_rows(facts, data_name)),
        recipe=RECIPE if facts.recipe is not None else None,
        begun=_begun_with(facts),
        validation=_validation(named_values_at(metrics, "validation")),
        psnr=_psnr(named_values_at(metrics, "psnr")),
        comparisons=_comparisons(rows, (height, width)),
        test=_test(test) if is_finite(test.get("accuracy")) else None,
        masks=_mask_test(test) if is_finite(test.get("mean_iou")) else None,
        several_seeds=any(
            isinstance(row.get("seeds"), list) and len(row["seeds"]) > 1 for row in rows
        ),
        notes=(notes or "").strip(),
        licence=_licence(licence),
    )
    return f"{card}\n"


def with_metadata(
    text: str,
    facts: Facts,
    *,
    name: str,
    licence: str | None = None,
    dataset: str | None = None,
) -> str:
    """A card written before, with our metadata in front when it has none of its own.

    A licence goes into metadata without one, and where our card says that none was named. Raises
    ValueError when the card names another licence, and for metadata that are no YAML.
    """
    metadata, named = _metadata_of(text), licence_of(text)
    empty = metadata is not None and metadata.get("license", "") is None
    if licence is not None and (empty or named not in (None, licence)):
        raise ValueError(
            f"the card names another licence, {named or 'an empty one'}: change it there, or leave"
            " --licence out"
        )
    if licence is not None and named is None:
        text = text.replace(_licence(None), _licence(licence))
    if metadata is None:
        data = card_data(facts, name=name, licence=licence or named, dataset=dataset)
        return f"---\n{data.to_yaml()}\n---\n\n{text}"
    if licence is not None and "license" not in metadata:
        text = text.replace("---\n", f"---\nlicense: {licence}\n", 1)
    return text


def check_card(text: str) -> None:
    """Raise ValueError for metadata that the Hub's client cannot read; no network is needed.

    Names of the base model and of data sets must be such as the Hub has. Whether there are models
    and data sets of those names the Hub itself checks, when the card is sent.
    """
    metadata = _metadata_of(text)
    try:
        ModelCard(text)
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"the card's metadata cannot be read: {error}") from error
    _origin_in(metadata or {})


def origin_of(text: str) -> Origin:
    """Base model and data sets that a card names in its metadata.

    Raises ValueError for metadata that are no YAML and for names that the Hub cannot have.
    """
    return _origin_in(_metadata_of(text) or {})


def _origin_in(metadata: dict[str, Any]) -> Origin:
    base, data = metadata.get("base_model"), metadata.get("datasets") or ()
    for key, value in (("base_model", base), ("datasets", data)):
        texts = [value] if isinstance(value, str) else value or ()
        if not isinstance(texts, list | tuple) or not all(isinstance(one, str) for one in texts):
            raise ValueError(f"the card's {key} is no name and no list of names: {value!r}")
        for name in texts:
            check_hub_name(name)
    several = isinstance(base, list)
    return Origin(
        base_model=(base[0] if base else None) if several else base,
        trained_on=(data,) if isinstance(data, str) else tuple(data),
    )


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

    `name` stands in the line that loads them, and as title and in the metadata where the old name
    did. A card without our lines stays as it is.
    """
    loading = _LOADING.search(text)
    if loading is None or loading[2] == in_quotes(name):
        return text
    text = f"{text[: loading.start(2)]}{in_quotes(name)}{text[loading.end(2) :]}"
    old, new = (place.rpartition("/")[2] for place in (loading[2], name))
    text = _with_line(text, f"# {markdown(old)}", f"# {markdown(new)}")
    return _with_line(text, _named(old), _named(new))


def loaded_names(text: str) -> list[str]:
    """The names that a card passes to `load_model`, each once."""
    return list(dict.fromkeys(re.findall(r"""load_model\(\s*["']([^"'\n]+)["']""", text)))


def _with_line(text: str, old: str, new: str) -> str:
    """The text with the first line that is `old` replaced."""
    return re.sub(rf"^{re.escape(old)}$", lambda _: new, text, count=1, flags=re.MULTILINE)


def _named(name: str) -> str:
    """The line of the metadata that holds the model's name."""
    return yaml.safe_dump([{"name": name}]).rstrip()


def _metadata_of(text: str) -> dict[str, Any] | None:
    block = re.match(r"---\n(.*?)^---[ \t]*$", text, re.DOTALL | re.MULTILINE)
    if block is None:
        return None
    metadata = load_yaml(block[1], origin="the YAML between the card's --- lines")
    return {} if metadata is None else metadata if isinstance(metadata, dict) else None


def _rows(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in metrics.get("rows") or [] if is_finite(row.get("accuracy"))]


def _image_size(facts: Facts) -> tuple[int, int]:
    """Height and width that images are brought to, also by a model that was made for others."""
    height, width = facts.weights["preprocess"]["size"]
    return height, width


def _tested_on(dataset: str, result: dict[str, Any]) -> dict[str, Any]:
    """A result with the name of its images in place of their address."""
    address = result.get("tested_on")
    split = address_and_split(address)[1] if isinstance(address, str) else None
    return {**result, "tested_on": ", ".join(filter(None, (dataset, split)))}


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
    others = ModelConfig.from_dict(config).other_operators
    atoms = config.get("overcomplete", 1)
    steps = f"{atoms} x {config['dim']} atoms, two ISTA steps from 0 and a skip (not of the paper)"
    return [
        ("size", f"{size}: width {config['dim']}, heads {heads}, layers {layers}"),
        ("patches", f"{patch} pixels"),
        ("step size and sparsity", f"eta {config['step_size']}, lambda {config['sparsity']}"),
        *([("dictionaries", steps)] if atoms > 1 else []),
        ("output map, mask tokens", f"{config['output_projection']}, {config['mask_tokens']}"),
        *([("other operators (not of the paper)", ", ".join(others))] if others else []),
        *([("predicts", target)] if facts.weights["model"] == "CrateMAE" else []),
        ("images are normalised with", f"mean {mean}; std {std}; done by every command"),
        ("SHA-256 of `model.safetensors`", facts.sha256),
    ]


def _training_rows(facts: Facts, data_name: str | None) -> list[tuple[str, str]]:
    metrics, recipe = facts.metrics, facts.recipe or {}
    data, versions = named_values_at(metrics, "data"), named_values_at(metrics, "versions")
    optim, masking = named_values_at(recipe, "optim"), named_values_at(recipe, "masking")
    address = " ".join(str(data[key]) for key in ("source", "split") if data.get(key))
    images = counted(data.get("images"), "image")
    rows = [
        (
            "data",
            ", ".join(filter(None, (data_name, code_span(address) if address else None, images))),
        ),
        ("started from", _start(named_values_at(metrics, "start"))),
        ("steps", _steps(metrics, optim)),
        ("weights", _which(metrics)),
        ("patches removed", masking_text(masking)),
        ("optimiser", _optimiser(optim)),
        ("seed", markdown(recipe.get("seed", ""))),
        ("software", _software(versions)),
        ("commit", markdown(versions.get("git") or "")),
        ("finished", "no: a checkpoint on the way" if metrics.get("finished") is False else ""),
    ]
    return [(what, value) for what, value in rows if value]


def _start(start: dict[str, Any]) -> str:
    """The weights that training began with; "" where none are known."""
    name, sha256 = start.get("weights"), start.get("sha256")
    if not isinstance(sha256, str):
        return ""
    shipped = f"{code_span(name)}, " if isinstance(name, str) and name in SHIPPED else ""
    return f"{shipped}weights of SHA-256 {code_span(sha256)}"


def _begun_with(facts: Facts) -> str | None:
    """What `--init-from` has to name so that the recipe makes these weights; None for nothing."""
    if facts.weights["model"] != "CrateMAE" or not _start(
        start := named_values_at(facts.metrics, "start")
    ):
        return None
    name = start.get("weights")
    return name if isinstance(name, str) and name in SHIPPED else "WEIGHTS"


def _steps(metrics: dict[str, Any], optim: dict[str, Any]) -> str:
    steps, of_run = (counted(metrics.get(k), "optimiser step") for k in ("steps", "run_steps"))
    plan = ""
    if optim.get("epochs") is not None and optim.get("batch_size") is not None:
        epochs, batch = markdown(optim["epochs"]), markdown(optim["batch_size"])
        plan = f"{epochs} epochs, {batch} images a step"
    if metrics.get("best") is not True:
        return ", ".join(filter(None, (steps, plan)))
    # The plan, and here the count below `run_steps`, are the run's, not those of its best weights.
    planned = f" ({plan})" if of_run and plan else plan
    if steps:
        whole = (f"{metrics['run_steps']:,}" if of_run else "") + planned
        return f"{steps} of a run of {whole}" if whole else steps
    return f"not known, of a run of {of_run}{planned}" if of_run or planned else ""


def _which(metrics: dict[str, Any]) -> str:
    """Which weights of the run these are, where they are not simply the last."""
    if metrics.get("best") is not True:
        return ""
    steps, of_run = metrics.get("steps"), metrics.get("run_steps")
    words = "the best of the run by validation"
    if not is_count(steps) or not is_count(of_run):
        return words
    return f"{words}, {'which were the last' if steps == of_run else 'not the last'}"


def _optimiser(optim: dict[str, Any]) -> str:
    if not is_finite(optim.get("base_lr")):
        return ""
    return (
        f"AdamW, learning rate {optim['base_lr']:g} per 256 images, weight decay"
        f" {markdown(optim.get('weight_decay'))}, {markdown(optim.get('warmup_epochs'))} epochs of"
        " warm-up"
    )


def _software(versions: dict[str, Any]) -> str:
    named = (("crate-mae", "crate_mae"), ("torch", "torch"))
    return ", ".join(
        f"{name} {markdown(versions[key])}" for name, key in named if versions.get(key)
    )


def _licence(licence: str | None) -> str:
    if licence is None:
        return "None has been named: ask whoever published these weights before you use them."
    return f"{'MIT' if licence == 'mit' else licence}. The training images keep their own terms."


def _validation(values: dict[str, Any]) -> dict[str, str]:
    """The losses of held-out images as text, those that are there."""
    formats = {
        "loss": ("val/loss", ".4g"),
        "accuracy": ("val/accuracy", ".2%"),
        "mean_iou": ("val/mean_iou", ".4f"),
        "colour": ("val/mean_colour", ".4g"),
        "patch": ("val/patch_mean", ".4g"),
    }
    if not is_finite(values.get("val/loss")):
        return {}
    return {
        name: format(values[key], form)
        for name, (key, form) in formats.items()
        if is_finite(values.get(key))
    }


def _psnr(values: dict[str, Any]) -> dict[str, str] | None:
    if not is_finite(values.get("mean")):
        return None
    count = counted(values.get("images"), "held-out image") or "held-out images"
    return {"mean": f"{values['mean']:.2f}", "images": count}


def _comparisons(rows: list[dict[str, Any]], size: tuple[int, int]) -> list[dict[str, Any]]:
    """A table for every number of images and of seeds, so that what stands below holds for all."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        seeds = row.get("seeds")
        repeats = len(seeds) if isinstance(seeds, list) else 1
        groups.setdefault((counts_text(row), repeats), []).append(told(row, size))
    return [_comparison(group) for group in groups.values()]


def _comparison(rows: list[dict[str, Any]]) -> dict[str, Any]:
    layout = comparison_layout(rows, whole=True)
    marked = any(cell.best for row in layout.rows for cell in row)
    counts = counts_text(rows[0])
    return {
        "counts": markdown(counts) or "counts were not recorded",
        "table": markdown_table(layout),
        "legend": f"Bold: {layout.best}." if marked else "",
        "notes": [markdown(note) for note in layout.notes if note != counts],
    }


def _test(values: dict[str, Any]) -> dict[str, str]:
    return {
        "accuracy": f"{values['accuracy']:.2%}",
        "interval": interval_text(values),
        "counts": markdown(counts_text(values)) or "counts were not recorded",
    }


def _mask_test(values: dict[str, Any]) -> dict[str, str]:
    found = {
        "mean_iou": f"{values['mean_iou']:.4f}",
        "trivial": f"{values['majority_mean_iou']:.4f}"
        if is_finite(values.get("majority_mean_iou"))
        else "",
        "accuracy": f"{values['pixel_accuracy']:.2%}"
        if is_finite(values.get("pixel_accuracy"))
        else "",
        "counts": markdown(counts_text(values)) or "counts were not recorded",
    }
    iou = values.get("iou")
    known = iou if isinstance(iou, dict) else {}
    found["iou"] = ", ".join(
        f"{markdown(name)} {value:.4f}" for name, value in list(known.items())[:LISTED]
        if is_finite(value)
    )  # fmt: skip
    return found


def _segmenter(head: Any) -> dict[str, str] | None:
    """What a card says of a segmentation head; None for models without one."""
    if not isinstance(head, dict):
        return None
    names = [markdown(name) for name in head.get("class_names") or []]
    more = f" and {len(names) - LISTED} more" if names[LISTED:] else ""
    return {
        "head": markdown(head.get("head", "")),
        "count": str(len(names)),
        "classes": ", ".join(names[:LISTED]) + more,
    }


def markdown_table(table: Table) -> str:
    """A table as Markdown, the best cells bold, with nothing in it that a file could slip in."""
    body = [
        [f"**{markdown(cell.text)}**" if cell.best else markdown(cell.text) for cell in row]
        for row in table.rows
    ]
    heads = [f"| {' | '.join(table.heads)} |", "|" + "---|" * len(table.heads)]
    return "\n".join([*heads, *(f"| {' | '.join(cells)} |" for cells in body)])


def table_of(rows: list[tuple[str, str]]) -> str:
    """A Markdown table of names and values, or "" for none; a value may hold Markdown, no HTML."""
    lines = [f"| {what} | {in_cell(value)} |" for what, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines]) if rows else ""


def counted(number: Any, what: str) -> str:
    """Such as "1 image" and "2,000 images"; "" for what is no whole number."""
    return f"{number:,} {what}{'' if number == 1 else 's'}" if is_count(number) else ""
