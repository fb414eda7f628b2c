"""A segmentation head as `config.json` describes it: its sizes are bounded before it is built."""

from typing import Any

from crate_mae.models.depict import Head, SegmentationDecoder
from crate_mae.models.limits import MAX_CLASSES, MAX_DEPTH, MAX_DIM
from crate_mae.models.linear_decoder import LinearDecoder
from crate_mae.models.mask_classes import MaskClasses

FORMS = {"depict-self": "self", "depict-cross": "cross"}
"""DEPICT's form by the name of a head."""
_CLASSES = {"values", "class_names", "ignored"}


def read_head(described: dict[str, Any], *, dim: int) -> tuple[Head, MaskClasses]:
    """The head, on the device of the context, and its classes, from the section `segmenter`.

    Raises ValueError for sizes that are none or larger than is ever built, for a width other than
    `dim`, the encoder's, and for classes that do not fit.
    """
    name = described.get("head")
    sizes = {key: described[key] for key in described if key not in {"head", *_CLASSES}}
    classes = MaskClasses.from_facts({key: described.get(key) for key in _CLASSES})
    bounded_sizes(sizes)
    if sizes.get("dim") != dim or sizes.get("num_classes") != len(classes.values):
        raise ValueError(
            f"the head is for width {sizes.get('dim')!r} and {sizes.get('num_classes')!r} classes,"
            f" the encoder has width {dim}, and {len(classes.values)} classes are named"
        )
    if name == "linear":
        return LinearDecoder(**sizes), classes
    if name not in FORMS:
        raise ValueError(f"the head is {name!r}; known are linear, {', '.join(FORMS)}")
    return SegmentationDecoder(**sizes, form=FORMS[name]), classes  # type: ignore[arg-type]


def bounded_sizes(sizes: dict[str, Any]) -> dict[str, Any]:
    """The sizes themselves when nothing of them is larger than is ever built; else ValueError."""
    limits = {"num_classes": MAX_CLASSES, "num_layers": MAX_DEPTH}
    for name, value in sizes.items():
        if name != "form" and not (type(value) is int and 0 < value <= limits.get(name, MAX_DIM)):
            raise ValueError(f"{name} of the decoder is {value!r}")
    return sizes
