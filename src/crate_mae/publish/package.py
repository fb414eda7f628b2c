"""What is published of weights: a list of files, and the same files in a folder.

What leaves the machine is named here, file by file: weights, card, recipe, metrics. Never
checkpoints, logs, command lines, the environment, or a path of this machine.
"""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crate_mae.common.files import check_new_folder, user_path
from crate_mae.publish.card import (
    UNKNOWN,
    Origin,
    check_card,
    licence_of,
    loaded_names,
    model_card,
    origin_of,
    with_metadata,
    with_name,
)
from crate_mae.publish.facts import METRICS, RECIPE, gather, recipe_text
from crate_mae.publish.remote_code import AUTO_MAP, CODE, remote_code
from crate_mae.weights.one_folder import PROCESSOR
from crate_mae.weights.shipped import CARD, FILES, SHIPPED
from crate_mae.weights.weights_folder import replacing_folder, shared_files

OURS = (*FILES, PROCESSOR, CARD, RECIPE, METRICS, *CODE)
MAX_TEXT_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Package:
    """What is published: names, and where the content of each lies or what it is."""

    files: dict[str, Path | bytes]
    sha256: str
    """Of the tensor file."""
    left_out: tuple[str, ...]
    """What the card leaves out and why, in sentences."""
    doubts: tuple[str, ...] = ()
    """What should be looked at in a card that was there before, in sentences."""

    def sizes(self) -> dict[str, int]:
        """Bytes of every file."""
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in self.files.items()
        }


def check_licence(licence: str | None) -> str | None:
    """The licence's identifier as the Hub writes it, such as "mit"; ValueError for other text."""
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{1,40}", licence.lower()):
        raise ValueError(
            f"{licence!r} is no licence identifier: write one such as mit, apache-2.0, cc-by-4.0"
            " or other"
        )
    return None if licence is None else licence.lower()


def build_package(
    weights: str | Path,
    *,
    name: str,
    title: str | None = None,
    licence: str | None = None,
    data_name: str | None = None,
    dataset: str | None = None,
    card: str | Path | None = None,
    notes: str | Path | None = None,
    results: Sequence[str | Path] = (),
    with_code: bool = False,
    origin: Origin = UNKNOWN,
) -> Package:
    """The files to publish of a run folder, a weights folder or a shipped model.

    `name` is how `load_model` will find them. `card` is a file with a card of your own, `notes` one
    with text that goes into ours, `results` as in `gather`; `data_name` and `dataset` as in
    `model_card`, `origin` what the Hub is told of where the model comes from. `with_code` adds two
    files of code, which transformers runs where its user asks for `trust_remote_code`. A folder
    that was published before brings its card, with `name` in place of the old one, unless there is
    something new to say: then it is written anew under the old licence or the new one. Raises what
    `gather` raises, ValueError for a licence or text that is none, for a card that names another
    licence or that the Hub's client cannot read and for code of a model that has none, and
    FileNotFoundError for a file that is not there.
    """
    licence = check_licence(licence)
    own = None if card is None else _text(card)
    added = None if notes is None else _text(notes)
    facts = gather(weights, results)
    # A shipped model's own name gives these very weights anywhere.
    names = {name, *(key for key, shipped in SHIPPED.items() if shipped.sha256 == facts.sha256)}
    doubts = []
    if own is None and facts.card is not None:
        if added or results or title or data_name or dataset or origin != UNKNOWN:
            licence, before = licence or licence_of(facts.card), origin_of(facts.card)
            origin = Origin(
                base_model=origin.base_model or before.base_model,
                trained_on=origin.trained_on or before.trained_on,
            )
            doubts.append("The card beside the weights is made anew: what you wrote in it is lost.")
        elif names.issuperset(loaded_names(facts.card)):
            own = facts.card
        else:
            own = with_name(facts.card, name)
    if own is None:
        text = model_card(
            facts,
            name=name,
            title=title,
            licence=licence,
            data_name=data_name,
            dataset=dataset,
            notes=added,
            origin=origin,
        )
    else:
        text = with_metadata(own, facts, name=name, licence=licence)
        if others := [other for other in loaded_names(text) if other not in names]:
            doubts.append(f"The card loads {', '.join(others)}; these weights will be {name}.")
    check_card(text)
    files: dict[str, Path | bytes] = {file: facts.folder / file for file in FILES}
    shared = shared_files(facts.folder, {"auto_map": AUTO_MAP} if with_code else None)
    if with_code and not shared:
        raise ValueError(f"there is no code to send with a model of kind {facts.weights['model']}")
    files.update(shared)
    if with_code:
        files.update(remote_code())
    files[CARD] = text.encode()
    if facts.recipe is not None:
        files[RECIPE] = recipe_text(facts.recipe).encode()
    if len(facts.metrics) > 2:  # more than hash and size
        files[METRICS] = (json.dumps(facts.metrics, indent=2) + "\n").encode()
    return Package(files=files, sha256=facts.sha256, left_out=facts.left_out, doubts=tuple(doubts))


def write_folder(package: Package, folder: str | Path) -> Path:
    """The folder's whole path, now with exactly the files that would be sent; all or none.

    An empty folder is filled and stays itself: somebody may stand in it, or it may be a mount.
    Raises what `check_new_folder` raises.
    """
    folder = check_new_folder(folder)
    whole = folder / f".{folder.name}.whole" if folder.exists() else folder
    with replacing_folder(whole) as fresh:
        for name, content in package.files.items():
            if isinstance(content, bytes):
                (fresh / name).write_bytes(content)
            else:
                shutil.copyfile(content, fresh / name)
    if whole != folder:
        for name in package.files:
            (whole / name).rename(folder / name)
        whole.rmdir()
    return folder


def _text(path: str | Path) -> str:
    file = user_path(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no text file {file}")
    if file.stat().st_size > MAX_TEXT_BYTES:
        raise ValueError(f"{file} is larger than {MAX_TEXT_BYTES} bytes: no card is so long")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8") from error
