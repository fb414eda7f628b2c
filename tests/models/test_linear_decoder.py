"""The linear head: each patch by itself, by the definition of a linear map."""

import pytest
import torch
from model_cases import FAMILY, images_for

from crate_mae.models.depict import CrateSegmenter, head_name, segmentation_head
from crate_mae.models.encoder import Encoder
from crate_mae.models.linear_decoder import LinearDecoder
from crate_mae.models.mask_classes import MaskClasses


def test_scores_of_patches_by_loops() -> None:
    torch.manual_seed(0)
    decoder = LinearDecoder(dim=5, num_classes=3).double()
    features = torch.randn(2, 6, 5, dtype=torch.float64)
    scores = decoder(features, (2, 3)).detach()
    assert scores.shape == (2, 3, 2, 3)
    weight, bias = decoder.linear.weight.tolist(), decoder.linear.bias.tolist()
    for image in range(2):
        for number in range(3):
            for place in range(6):
                values = features[image, place].tolist()
                expected = bias[number] + sum(
                    w * v for w, v in zip(weight[number], values, strict=True)
                )
                found = float(scores[image, number, place // 3, place % 3])
                assert found == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="5 patch features do not fill a grid of 2x3"):
        decoder(features[:, :5], (2, 3))
    with pytest.raises(ValueError, match="num_classes must be a positive whole number, not 0"):
        LinearDecoder(dim=5, num_classes=0)


@pytest.mark.parametrize("name", ["linear", "depict-self", "depict-cross"])
def test_a_segmenter_scores_pixels_and_repeats_itself(name: str) -> None:
    config = FAMILY["crate"]
    classes = MaskClasses(values=(0, 9, 4), names=("a", "b", "c"))
    torch.manual_seed(0)
    head = segmentation_head(name, dim=config.dim, num_classes=3)  # type: ignore[arg-type]
    model = CrateSegmenter(Encoder(config), head, classes=classes)
    assert head_name(head) == name
    images = images_for(config)
    *_, (last, scores) = model.tensors_to_scores(images[..., :-1])
    assert last == "scores"
    torch.testing.assert_close(model(images[..., :-1]), scores)
    assert scores.shape[-1] == images.shape[-1] - 1
    first, second, third = (model.untrained(seed) for seed in (1, 1, 2))
    for key, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], value)
    assert any(not torch.equal(third.state_dict()[k], v) for k, v in first.state_dict().items())
    assert first.classes == classes
    assert type(first.decoder) is type(head)
    with pytest.raises(ValueError, match="tells 3 classes apart, not 2"):
        CrateSegmenter(Encoder(config), head, classes=MaskClasses.numbered(2))
