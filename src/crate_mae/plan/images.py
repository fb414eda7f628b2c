"""How many images a run trains on, without downloading any."""

from dataclasses import dataclass

from crate_mae.data.labelled import LabelledDataConfig
from crate_mae.data.module import VALIDATION_SEED, DataConfig, split_off
from crate_mae.data.sources import open_source
from crate_mae.data.streams import StreamSource
from crate_mae.data.torchvision_datasets import open_torchvision
from crate_mae.training.config import FinetuneConfig, PretrainConfig
from crate_mae.training.labels import open_labelled


@dataclass(frozen=True, kw_only=True)
class Images:
    """The training images of a run."""

    count: int
    origin: str
    """Where the count comes from."""
    classes: int | None = None
    """Classes of a supervised run."""


def count_images(config: PretrainConfig | FinetuneConfig) -> Images:
    """The training images that a run of this configuration would have.

    Sources are opened as the run opens them, with the same images held out, but nothing is decoded
    and nothing downloaded. Raises FileNotFoundError for data that are not on this machine, naming
    the two ways on, and what opening them raises.
    """
    try:
        _check_present(config.data)
        if isinstance(config, FinetuneConfig):
            images = open_labelled(config.data, seed=config.seed)
            return Images(
                count=len(images.train), origin=images.train.address,
                classes=len(images.class_names),
            )  # fmt: skip
        return _unlabelled(config.data, config.seed)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; plan without the data by --images N, or say where they are with"
            " --data.source"
        ) from error


def _unlabelled(data: DataConfig, seed: int) -> Images:
    train = open_source(data.source, split=data.split, limit=data.limit, seed=seed)
    if isinstance(train, StreamSource):
        return Images(count=train.count(), origin=train.address)
    if data.val_share and data.val_source is None and data.val_split is None:
        train, _ = split_off(train, data.val_share, VALIDATION_SEED, data.val_limit)
    return Images(count=len(train), origin=train.address)


def _check_present(data: DataConfig) -> None:
    """Nothing; raises FileNotFoundError for an address that opening would download."""
    named = {data.source: data.split}
    if data.val_source is not None:
        named[data.val_source] = data.val_split
    if isinstance(data, LabelledDataConfig) and data.test_source is not None:
        named[data.test_source] = data.test_split
    for address, split in named.items():
        scheme, _, rest = address.partition(":")
        if scheme == "torchvision":
            open_torchvision(rest, split, download=False)
        if scheme == "hf":
            raise FileNotFoundError(f"{address} may have to be fetched, which planning does not do")
