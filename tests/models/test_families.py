"""Presets of the other families: what they are made of, and their numbers of parameters."""

import pytest
import torch

from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.classifier import CrateClassifier
from crate_mae.models.config import PRESETS, ModelConfig, resolve_config
from crate_mae.models.depict import SegmentationDecoder
from crate_mae.models.encoder import Encoder

CLASSIFIERS = {
    ("crate-tiny", 1000): 6_090_856,
    ("crate-small", 1000): 13_116_328,
    ("crate-base", 1000): 22_796_008,
    ("crate-large", 1000): 77_641_192,
    ("crate-alpha-tiny", 1000): 4_811_944,
    ("crate-alpha-small", 1000): 40_975_912,
    ("crate-alpha-base-p32", 1000): 73_985_512,
    ("crate-alpha-base-p32", 19_167): 87_955_935,
    ("crate-alpha-base", 1000): 72_328_936,
    ("crate-alpha-base", 19_167): 86_299_359,
    ("crate-alpha-base-p8", 1000): 72_338_152,
    ("crate-alpha-base-p8", 19_167): 86_308_575,
    ("crate-alpha-large-p32", 1000): 255_982_568,
    ("crate-alpha-large-p32", 19_167): 274_603_743,
    ("crate-alpha-large", 1000): 253_650_920,
    ("crate-alpha-large", 19_167): 272_272_095,
    ("crate-alpha-large-p8", 1000): 253_786_088,
    ("crate-alpha-large-p8", 19_167): 272_407_263,
    ("crate-alpha-huge", 1000): 526_819_560,
}
"""Parameters by preset and classes, counted in the authors' code."""


@pytest.mark.parametrize(("preset", "classes"), CLASSIFIERS)
def test_classifiers_have_as_many_parameters_as_the_published_code(
    preset: str, classes: int
) -> None:
    with torch.device("meta"):
        model = CrateClassifier(PRESETS[preset], num_classes=classes, pool="cls")
    assert sum(p.numel() for p in model.parameters()) == CLASSIFIERS[preset, classes]


def test_the_model_of_the_demo_has_as_many() -> None:
    config = resolve_config("crate-base", patch_size=8, num_heads=6, decoder_num_heads=6)
    with torch.device("meta"):
        model = CrateClassifier(config, num_classes=21_842, pool="cls")
    assert sum(p.numel() for p in model.parameters()) == 38_831_570


@pytest.mark.parametrize(
    ("changes", "millions"),
    [
        ({}, 21.87),
        ({"overcomplete": 4}, 43.11),
        (
            {
                "overcomplete": 4,
                "sparse_step": "decoupled",
                "output_projection": "free-no-bias",
            },
            71.41,
        ),
        ({"sparse_step": "none"}, 14.78),
        ({"attention": "tssa"}, 21.87),
    ],
    ids=str,
)
def test_bare_encoders(changes: dict[str, object], millions: float) -> None:
    with torch.device("meta"):
        encoder = Encoder(resolve_config("base", **changes))
    assert round(sum(p.numel() for p in encoder.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize("name", ["aot-tiny", "aot-small", "aot-base", "aot-large"])
def test_attention_alone_is_attention_alone(name: str) -> None:
    config = PRESETS[name]
    with torch.device("meta"):
        model = CrateMAE(config)
    d = config.dim
    for layer in (*model.encoder.layers, *model.decoder):
        assert sum(p.numel() for p in layer.parameters()) == 2 * d * d + d + 2 * d
        assert layer.sparse_step is None
    if name == "aot-base":
        assert round(sum(p.numel() for p in model.encoder.parameters()) / 1e6, 2) == 14.78


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("tost-tiny", (192, 12, 4)),
        ("tost-small", (384, 12, 8)),
        ("tost-medium", (512, 24, 8)),
        ("tost-large", (768, 24, 16)),
    ],
)
def test_token_statistics_have_their_published_widths(
    name: str, sizes: tuple[int, int, int]
) -> None:
    config = PRESETS[name]
    assert (config.dim, config.depth, config.num_heads) == sizes
    with torch.device("meta"):
        (layer, *_) = CrateMAE(config).encoder.layers
    d = config.dim
    # U with bias, W with bias, a temperature a head.
    assert sum(p.numel() for p in layer.mssa.parameters()) == 2 * (d * d + d) + sizes[2]


@pytest.mark.parametrize("name", [n for n in PRESETS if n.startswith(("crate-", "tost-", "aot-"))])
def test_decoders_mirror_their_encoder(name: str) -> None:
    config = PRESETS[name]
    assert (config.decoder_depth, config.decoder_num_heads) == (config.depth, config.num_heads)
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_a_decoder_of_segments_counts_beside_its_encoder() -> None:
    with torch.device("meta"):
        decoder = SegmentationDecoder(dim=PRESETS["crate-base"].dim, num_classes=150)
    assert sum(p.numel() for p in decoder.parameters()) == 812_847
