"""Weights that come with the package: small, made by its own recipes, no network needed."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from crate_mae.common.files import user_path

FOLDER = Path(__file__).parent.parent / "shipped"
CARD = "README.md"
TENSORS, CONFIG, PREPROCESS = "model.safetensors", "config.json", "preprocess.json"
FILES = (TENSORS, CONFIG, PREPROCESS)
"""What a weights folder holds."""
HUB_NAME = r"[\w-][\w.-]*/[\w-][\w.-]*"
"""The shape of a name on the Hub, OWNER/NAME."""


@dataclass(frozen=True, kw_only=True)
class ShippedWeights:
    """One shipped model."""

    name: str
    sha256: str
    """Of its tensor file, as it was when the model was measured."""
    settings_sha256: str
    """Of `config.json` followed by `preprocess.json`."""
    summary: str

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return FOLDER / self.name

    @property
    def card(self) -> str:
        """Its model card: recipe, data, numbers, limits, licence."""
        return (self.folder / CARD).read_text(encoding="utf-8")

    def damaged(self) -> list[str]:
        """Which of its files are missing or have other content than was shipped, in words."""
        parts = (
            (("model.safetensors",), self.sha256),
            (("config.json", "preprocess.json"), self.settings_sha256),
        )
        found = []
        for names, expected in parts:
            digest = hashlib.sha256()
            missing = [name for name in names if not (self.folder / name).is_file()]
            for name in names if not missing else ():
                digest.update((self.folder / name).read_bytes())
            if missing:
                found.append(f"{' and '.join(missing)} missing")
            elif digest.hexdigest() != expected:
                found.append(f"{' or '.join(names)} changed")
        return found


SHIPPED = {
    weights.name: weights
    for weights in (
        ShippedWeights(
            name="cifar10-small",
            sha256="4c8e7d74282b50c397b0591c5b69e163ea357e8b3ae9fd3528f733f35fccd790",
            settings_sha256="ac8d0f130aeb009a000fa0f10b1963fbe4900c5b66153dda1719d6426ebc0a1d",
            summary="CRATE-MAE, 32 px, width 128, 4 + 4 layers, 15 epochs of CIFAR-10",
        ),
        ShippedWeights(
            name="cifar10-shallow",
            sha256="f970cf4874a36e41d9662efc51a2958411c03b6362ec5697e93f1654a1f3b5d3",
            settings_sha256="21ac9f36156a307dad7235384a2b632f2376534937fde90334cc886d6f52ed9d",
            summary="the published layers and objective: width 192, 2 + 2 layers, 40 epochs",
        ),
        ShippedWeights(
            name="cifar10-rate",
            sha256="cce8c2f9e178916d0d174b511b8483413cbd9047f2e4fc35e63a166087fbe628",
            settings_sha256="d7c4ceeb073bb75d75d77a7e7e6904041ce53bf16dbdcaf3f7f76ba2d9b904e1",
            summary="the best features: as cifar10-shallow, with the coding rate in its loss",
        ),
        ShippedWeights(
            name="cifar10-overcomplete",
            sha256="8ce6fab9a19466216effa5cfde752da266e215ffe3ceea8803289b727c4e929c",
            settings_sha256="0edddf30f1b18736392b3284fb1b5e64879704e186977d324e360bda88fab5c8",
            summary="the lowest loss, but not the paper's layers: 4 x 136 atoms, 2 + 2 layers",
        ),
        ShippedWeights(
            name="photos64",
            sha256="419fcb05c1678874354f623397a6c581066d028e2149135f9bc9cb6f222a6c49",
            settings_sha256="eddb897794b9b31a68fa508ba09534979c84db22c70483527dd3637c3a789908",
            summary="photographs of 64 px (Tiny ImageNet, research), 12 epochs, 3 + 2 layers",
        ),
        ShippedWeights(
            name="photos64-long",
            sha256="a83c69b85af75b50fb4ff59ccbc7b80690975c2bc34a2190c89e69d2de265497",
            settings_sha256="80868b2f66711ce8de5441ced99d36ad2dd85141853a83e44c9aed58e0c87eb3",
            summary="the better start: photos64, trained on (Tiny ImageNet, research)",
        ),
    )
}
"""The models that come with the package, by name."""


def shipped_folder(name: str | Path) -> Path | None:
    """The folder of a shipped model, or None for another name."""
    weights = SHIPPED.get(str(name))
    return None if weights is None else weights.folder


def check_weights_name(name: str | Path) -> None:
    """Raise FileNotFoundError for a name of weights that can be none: no folder, model or Hub name.

    Nothing is loaded or fetched, so that it can be said at once.
    """
    text = str(name)
    if user_path(name).exists() or text in SHIPPED or re.fullmatch(HUB_NAME, text):
        return
    raise FileNotFoundError(
        f"no weights at {text}: expected a folder with {', '.join(FILES)}, a run folder, a"
        f" shipped model ({', '.join(SHIPPED)}), or a Hub repository as owner/name"
    )
