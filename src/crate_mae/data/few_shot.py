"""The same small number of labelled images of every class, drawn by a seed."""

from collections.abc import Sequence

import torch


def few_shot_indices(labels: Sequence[int | None], shots: int, seed: int) -> list[int]:
    """The indices, ascending, of `shots` images of every class, drawn at random by the seed.

    Images without a label (None or below 0) are never drawn. Raises ValueError for `shots` below
    1, when nothing is labelled, and for classes with fewer than `shots` images, naming them.
    """
    if shots < 1:
        raise ValueError(f"shots must be at least 1, not {shots}")
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        if label is not None and label >= 0:
            members.setdefault(int(label), []).append(index)
    if not members:
        raise ValueError("no image has a label: few-shot sets are drawn by class")
    short = {label: len(found) for label, found in sorted(members.items()) if len(found) < shots}
    if short:
        shown = ", ".join(f"class {label} has {count}" for label, count in list(short.items())[:10])
        more = f" and {len(short) - 10} more" if len(short) > 10 else ""
        raise ValueError(f"{shots} images of every class were asked for, but {shown}{more}")
    generator = torch.Generator().manual_seed(seed)
    chosen: list[int] = []
    for label in sorted(members):
        found = members[label]
        order = torch.randperm(len(found), generator=generator)[:shots].tolist()
        chosen += [found[i] for i in order]
    return sorted(chosen)
