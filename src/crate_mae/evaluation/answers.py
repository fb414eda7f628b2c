"""What numbers mean, in words: each rule once, with its reason and the next command to try.

Tables, run ends and reports take their sentences from here. Rows and numbers are plain values, as
JSON files hold them; they may come from others, so what is missing is passed over.
"""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from crate_mae.common.values import is_count, is_finite, is_number
from crate_mae.evaluation.comparison import BASELINES, LONG_NAMES, PlainRow, headline, interval

FEW_STEPS = 1000
"""Optimiser steps below which masked pre-training is called very short."""
FEW_SUPERVISED_STEPS = 100
"""The same for training with labels, where the encoder is mostly there already."""
FEW_IMAGES = 2000
"""Images below which starting from a trained model is advised."""
UNEVEN_CLASSES = 3.0
"""Times the images of the smallest class from which the largest makes a set uneven."""
MANY_KNOWN = 1000
"""Training images from which wider features are advised: fewer do not tell how they spread."""
WIDER = {"probe": ("--pool", "mean,layers"), "knn": ("--pool", "mean,layers", "--whiten", "choose")}
"""By method: the options that ask for more than the mean of the last layer's tokens."""
HARDLY = 0.7
"""Share of what guessing loses that is left when a classifier has hardly learned."""
HARDLY_COMPLETED = 0.95
"""Share of the error of one colour from which masked completion has hardly learned."""
WIDE = 0.1
"""Width of a 95 % interval, as a share, from which a test is called small."""
UNEVEN = 0.05
"""How far balanced accuracy may lie below accuracy before rare classes are spoken of."""
BY_HEART = 0.1
"""Training loss, as a share of guessing, below which the labels are known by heart."""

Rule = Literal[
    # from scratch our smallest recipes need thousands of steps to pass one colour
    "few steps",
    # one colour needs no network: an error near it is that of no learning
    "hardly completed",
    # below the error of one colour the network predicts something of the picture
    "completed",
    # below the error of each patch's true mean, structure within patches is predicted
    "structure",
    # a random network's features are far above chance, so only the difference counts
    "untrained",
    # what pixels alone do needs no network at all
    "pixels",
    # always answering the most frequent class needs no image
    "majority",
    # differences smaller than the interval are chance
    "small test",
    # a frequent class can carry the accuracy while rare ones are missed
    "uneven",
    # a rare class hardly moves a loss that is a mean over pixels
    "missed",
    # the mean of the last layer leaves out what a classifier or neighbour can use
    "wider features",
    # a better setting may lie beyond the last one tried
    "edge",
    # an unfinished fit is not the minimum that the table speaks of
    "not converged",
    # a loss near that of guessing means that the weights have hardly moved
    "hardly learned",
    # labels known by heart and missed on new images are too few or too alike
    "by heart",
    # photographers centre what they take: a fixed ellipse knows nothing of the image
    "ellipse",
    # what cannot be read cannot be planned for
    "no images",
    # few images are seen so often that they are learned, not what they show
    "few images",
    # accuracy then mostly tells how the frequent class is recognised
    "uneven classes",
    # a probe or classifier needs two classes to tell apart
    "one class",
    # what comes after looking at the data is a plan that fits the machine
    "next",
    # at another mask ratio, patch or image set a loss is of something else
    "other losses",
    # of two runs whose intervals overlap, the next test may favour the other
    "best run",
    # losses of pixels do not tell how features do
    "not measured",
    # where objects are brighter or darker than the rest, one threshold finds them
    "brightness",
]
"""What a sentence goes by; beside each, why it is one."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One sentence about numbers."""

    rule: Rule
    """What it goes by."""
    text: str
    good: bool | None
    """True for what was hoped for, False for what was not, None where it cannot be told."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """What the next commands are about, as it was typed."""

    weights: str = "WEIGHTS"
    address: str = "ADDRESS"

    def command(self, *words: str) -> str:
        """A command line, quoted as a shell needs it."""
        return f"`{shlex.join(['crate-mae', *words])}`"


def answers_text(answers: Sequence[Answer]) -> str:
    """The sentences as lines below a heading; empty without any."""
    return "\n".join(["in words:", *(f"- {a.text}" for a in answers)]) if answers else ""


# -- data ---------------------------------------------------------------------------------------


def data_answers(readable: int, classes: Mapping[str, int] | None, place: Place) -> list[Answer]:
    """What a set of so many readable images, with labels or without, asks for next."""
    if not readable:
        text = "No image can be read, so there is nothing to train on: what is above says why."
        return [Answer(rule="no images", text=text, good=False)]
    plan = place.command("plan", "own-images", "--data.source", place.address, "--within", "1h")
    found = [Answer(rule="next", text=f"To train on them in an hour: {plan}.", good=None)]
    if readable < FEW_IMAGES:
        text = (
            f"{readable:,} image{'s are' if readable > 1 else ' is'} few to learn from alone: start"
            f" from a trained model, {place.command('weights')} lists them, with --init-from NAME."
        )
        found.append(Answer(rule="few images", text=text, good=None))
    counts = {name: count for name, count in (classes or {}).items() if count}
    if len(counts) == 1:
        text = f"All labels are {next(iter(counts))}: for a probe, put classes into folders."
        found.append(Answer(rule="one class", text=text, good=False))
    elif counts and max(counts.values()) > UNEVEN_CLASSES * min(counts.values()):
        most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
        text = (
            f"{most} has {counts[most]:,} images, {least} {counts[least]:,}: look at balanced"
            " accuracy and F1, not at accuracy."
        )
        found.append(Answer(rule="uneven classes", text=text, good=None))
    return found


# -- features -----------------------------------------------------------------------------------


def feature_answers(rows: Sequence[PlainRow], place: Place | None = None) -> list[Answer]:
    """What the rows of a comparison say of the model's features, by method."""
    place = place or Place()
    found: list[Answer] = []
    for method in LONG_NAMES:
        model = headline(rows, method, "model")
        if model is None:
            continue
        found += [
            *_beside_majority(model, method),
            *beside_baselines(rows, method, place),
            *_of_the_test(model, method, place),
            *_wider_features(rows, method, place),
        ]
    return found


def _of_model(rows: Sequence[PlainRow], method: str) -> list[PlainRow]:
    return [row for row in rows if row["method"] == method and row["subject"] == "model"]


def _read_widely(rows: Sequence[PlainRow], method: str) -> bool:
    """Whether other pools than the usual one, or whitened features, were tried already."""
    own = _of_model(rows, method)
    return any(row.get("pool", "mean") != "mean" or row.get("whitened") for row in own)


def _wider_features(rows: Sequence[PlainRow], method: str, place: Place) -> list[Answer]:
    known = next(row.get("num_train") for row in _of_model(rows, method))
    if _read_widely(rows, method) or not is_number(known) or known < MANY_KNOWN:
        return []
    words = {
        "probe": "mean and spread of the tokens of several layers often tell more",
        "knn": "mean and spread of several layers, whitened, often find better ones",
    }[method]
    ask = place.command(method, place.weights, place.address, *WIDER[method])
    text = f"{_name(method)}: {words}: {ask}."
    return [Answer(rule="wider features", text=text, good=None)]


def beside_baselines(
    rows: Sequence[PlainRow], method: str, place: Place | None = None
) -> list[Answer]:
    """The model beside each baseline: good where it is clearly better, None where it is open."""
    place = place or Place()
    model = headline(rows, method, "model")
    found = []
    for other in BASELINES:
        base = headline(rows, method, other)
        if model is None or base is None:
            continue
        better = clearly_better(model, base)
        gap = 100 * (model["accuracy"] - base["accuracy"])
        sure = ", but the intervals overlap: no clear difference" if better is None else ""
        far = f"{abs(gap):.1f} points {'above' if gap > 0 else 'below'}" if gap else "level with"
        text = f"{_called(model, method)}: {model['accuracy']:.1%}, {far} {other}"
        text += f" ({base['accuracy']:.1%}){sure}."
        rule: Rule = "untrained" if other == "random baseline" else "pixels"
        if not better:
            known, wide = better is False, _read_widely(rows, method)
            shots = model.get("shots")
            text += f" {_not_better(rule, method, place, known=known, wide=wide, shots=shots)}"
        found.append(Answer(rule=rule, text=text, good=better))
    return found


def _not_better(
    rule: Rule, method: str, place: Place, *, known: bool, wide: bool, shots: Any
) -> str:
    unknown = f"That is not shown to be better with {_name(method).lower()}"
    if rule == "untrained":
        plan = place.command("plan", "own-images", "--data.source", place.address, "--within", "8h")
        says = "Not better than the same network untrained" if known else unknown
        if wide:
            return f"{says}: try longer training, {plan}."
        few = ("--shots", str(shots)) if is_number(shots) else ()
        wider = place.command(method, place.weights, place.address, *few, *WIDER[method])
        return f"{says}: try wider features, {wider}, or longer training, {plan}."
    finetune = place.command(
        "finetune", place.weights, "--config", "finetune-few-labels",
        "--data.source", place.address,
    )  # fmt: skip
    says = f"Raw pixels do better with {_name(method).lower()}" if known else unknown
    return f"{says}: try fine-tuning, {finetune}."


def clearly_better(model: Mapping[str, Any], base: Mapping[str, Any]) -> bool | None:
    """Whether the model's 95 % interval lies above the other's; None where they overlap."""
    mine, other = interval(model), interval(base)
    if mine is None or other is None or (mine[0] <= other[1] and other[0] <= mine[1]):
        return None
    return mine[0] > other[1]


def _beside_majority(row: PlainRow, method: str) -> list[Answer]:
    ends, chance = interval(row), row.get("chance")
    if ends is None or not is_finite(chance) or ends[0] > chance:
        return []
    text = (
        f"{_called(row, method)}: {row['accuracy']:.1%} is not clearly above always answering"
        f" {_majority(row)} ({chance:.1%})."
    )
    return [Answer(rule="majority", text=text, good=False if ends[1] < chance else None)]


def _of_the_test(row: PlainRow, method: str, place: Place) -> list[Answer]:
    found, sgd = [], row.get("solver") == "sgd"
    ends, count = interval(row), row.get("num_test")
    if ends is not None and ends[1] - ends[0] > WIDE:
        text = (
            f"{_called(row, method)}: {count} test images leave"
            f" {100 * (ends[1] - ends[0]) / 2:.0f} points to each side: take"
            " smaller differences for chance, or test on more."
        )
        found.append(Answer(rule="small test", text=text, good=None))
    balanced = row.get("balanced_accuracy")
    if is_finite(balanced) and row["accuracy"] - balanced > UNEVEN:
        look = place.command(method, place.weights, place.address, "--verbose")
        text = (
            f"{_called(row, method)}: balanced accuracy is {balanced:.1%}, below"
            f" {row['accuracy']:.1%}: rare classes are missed; {look} tells which."
        )
        found.append(Answer(rule="uneven", text=text, good=False))
    if row.get("converged") is False:
        remedy = "a lower rate, `--learning-rates`" if sgd else "a stronger penalty, `--penalties`"
        text = f"{_called(row, method)}: the fit did not converge: try {remedy}."
        found.append(Answer(rule="not converged", text=text, good=False))
    edges = row.get("on_edge")
    if isinstance(edges, list) and edges:
        grid = _wider(method, sgd=sgd)
        if any(str(edge).startswith("whitening") for edge in edges):
            grid += ", `--whiten`"
        text = f"{_called(row, method)}: {', '.join(map(str, edges))}: try a wider grid, {grid}."
        found.append(Answer(rule="edge", text=text, good=None))
    return found


def _wider(method: str, *, sgd: bool) -> str:
    if method == "knn":
        return "`--k`, `--temperatures`"
    return "`--learning-rates`, `--weight-decays`" if sgd else "`--penalties`"


def _majority(row: PlainRow) -> str:
    name = row.get("majority")
    return f"{name}, the most frequent class" if isinstance(name, str) else "one class"


def _called(row: PlainRow, method: str) -> str:
    """The method of a row at the begin of a sentence, with the layers passed where not all were."""
    layer = row.get("layer")
    if not is_count(layer):
        return _name(method)
    return f"{_name(method)} after {layer} layer{'' if layer == 1 else 's'}"


def _name(method: str) -> str:
    return LONG_NAMES.get(method, method).capitalize()


# -- training -----------------------------------------------------------------------------------


def steps_answers(steps: int, *, supervised: bool = False) -> list[Answer]:
    """What a number of optimiser steps says; nothing where they are not few."""
    few = FEW_SUPERVISED_STEPS if supervised else FEW_STEPS
    if steps >= few:
        return []
    text = (
        f"{steps:,} optimiser steps are very few: below {few:,} take every number here for a first"
        " look. Raise --optim.epochs, or make optim.batch_size smaller."
    )
    return [Answer(rule="few steps", text=text, good=False)]


def completion_answers(
    loss: float | None,
    *,
    one_colour: float | None,
    patch_mean: float | None = None,
    normalised: bool = False,
) -> list[Answer]:
    """What a validation loss says beside predictions that need no network.

    `one_colour` is the error of the best single colour, `patch_mean` that of knowing each removed
    patch's true mean; `normalised` targets have no mean to know.
    """
    if loss is None or not one_colour:
        return []
    share = 1 - loss / one_colour
    text = (
        f"Completion: its error on removed patches is {abs(share):.0%}"
        f" {'below' if share >= 0 else 'above'} that of the best single colour ({loss:.4g} against"
        f" {one_colour:.4g})."
    )
    if loss > HARDLY_COMPLETED * one_colour:
        text += (
            f" It has hardly learned (loss {loss:.3g}, one colour {one_colour:.3g}): train longer,"
            " or try another --optim.base_lr, twice and half of the recipe's first."
        )
        return [Answer(rule="hardly completed", text=text, good=False)]
    found = [Answer(rule="completed", text=text, good=True)]
    if patch_mean and not normalised:
        better = loss < patch_mean
        text = (
            f"Completion: {'below' if better else 'above'} the error of knowing each removed"
            f" patch's true mean, {patch_mean:.4g}, which no model is told"
            f"{': it predicts structure within patches' if better else ''}."
        )
        found.append(Answer(rule="structure", text=text, good=True if better else None))
    return found


def classifier_answers(
    result: Mapping[str, Any],
    *,
    train_loss: float | None = None,
    smoothing: float = 0.0,
    mixed: bool = False,
) -> list[Answer]:
    """What a supervised run's test says, and the last training loss beside that of guessing.

    `smoothing` is the labels'; where labels are `mixed` in pairs, the loss has no known floor and
    nothing is said of it.
    """
    accuracy, chance = result.get("accuracy"), result.get("chance")
    if not is_finite(accuracy) or not is_finite(chance):
        return []
    how = "above" if accuracy > chance else "not above"
    text = (
        f"Test accuracy {accuracy:.1%}, {how} always answering {_majority(result)} ({chance:.1%})."
    )
    found = [Answer(rule="majority", text=text, good=accuracy > chance)]
    classes = result.get("num_classes")
    if train_loss is not None and not mixed and isinstance(classes, int) and classes > 1:
        found += _beside_guessing(train_loss, classes, smoothing, accuracy)
    balanced = result.get("balanced_accuracy")
    if is_finite(balanced) and accuracy - balanced > UNEVEN:
        text = (
            f"Balanced accuracy is {balanced:.1%}, below {accuracy:.1%}: rare classes are missed."
        )
        found.append(Answer(rule="uneven", text=text, good=False))
    return found


def _beside_guessing(loss: float, classes: int, smoothing: float, accuracy: float) -> list[Answer]:
    guessing, floor = math.log(classes), smoothed_entropy(classes, smoothing)
    left = (loss - floor) / (guessing - floor)
    if left > HARDLY:
        text = (
            f"It has hardly learned (loss {loss:.2f}, guessing {guessing:.2f}): raise the rate,"
            " --optim.base_lr, or train longer, --optim.epochs."
        )
        return [Answer(rule="hardly learned", text=text, good=False)]
    if left < BY_HEART and accuracy < 0.7:
        text = (
            f"The training labels are known by heart (loss {loss:.2f}), test images are not"
            f" ({accuracy:.1%}): more labels help most, then --data.augment.rand_augment 5,"
            " a smaller --optim.layer_decay, fewer epochs."
        )
        return [Answer(rule="by heart", text=text, good=None)]
    return []


def smoothed_entropy(classes: int, smoothing: float) -> float:
    """The least cross-entropy there is with labels of which a share is spread over all classes."""
    others = smoothing / classes
    shares = [1 - smoothing + others, *[others] * (classes - 1)]
    return -sum(share * math.log(share) for share in shares if share > 0)


# -- foreground ---------------------------------------------------------------------------------


def mask_answers(result: Mapping[str, Any]) -> list[Answer]:
    """What a test on masks says beside one class everywhere, and of classes that are missed."""
    found, trivial = result.get("mean_iou"), result.get("majority_mean_iou")
    if not is_finite(found) or not is_finite(trivial):
        return []
    how = "above" if found > trivial else "not above"
    everywhere = f"{_majority(result)} everywhere ({trivial:.4f})"
    text = f"Test mean IoU {found:.4f}, {how} {everywhere}."
    answers = [Answer(rule="majority", text=text, good=found > trivial)]
    iou = result.get("iou")
    missed = (
        [str(name) for name, value in iou.items() if value == 0] if isinstance(iou, dict) else []
    )
    if missed:
        more = f" and {len(missed) - 3} more" if missed[3:] else ""
        text = f"Never told right: {', '.join(missed[:3])}{more}; train longer, or with more of it."
        answers.append(Answer(rule="missed", text=text, good=False))
    return answers


def foreground_answers(
    found: float, *, everything: float, ellipse: float, brightness: float | None
) -> list[Answer]:
    """What a mean IoU says beside masks that need no network."""
    trivial = {"calling everything foreground": everything, "a centred ellipse": ellipse}
    answers = []
    name, best = max(trivial.items(), key=lambda item: item[1])
    text = f"IoU {found:.3f}, {'above' if found > best else 'not above'} {name} ({best:.3f})."
    if found <= best:
        text += " Try `--flip`, `--method attention`, `--per-image`, or another layer by `--after`."
    answers.append(Answer(rule="ellipse", text=text, good=found > best))
    if brightness is not None:
        better = found > brightness
        text = (
            f"IoU {found:.3f}, {'above' if better else 'not above'} Otsu's threshold on brightness"
            f" ({brightness:.3f})"
            f"{'.' if better else ': these objects differ in brightness, which needs no network.'}"
        )
        answers.append(Answer(rule="brightness", text=text, good=better))
    return answers
