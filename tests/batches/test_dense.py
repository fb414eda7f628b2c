"""Images and masks are changed alike: places, mirrors and sizes, against the image itself."""

import pytest
import torch
from data_cases import GREY
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from crate_mae.batches.config import Augment
from crate_mae.batches.dense import DenseMaker
from crate_mae.batches.transforms import dense_fit, dense_transform, fit
from crate_mae.sources.images import Sample

sides = st.integers(3, 40)


def nearest_by_loops(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask of another size: each pixel has the value at its own centre."""
    rows = [int((y + 0.5) * mask.shape[0] / size[0]) for y in range(size[0])]
    columns = [int((x + 0.5) * mask.shape[1] / size[1]) for x in range(size[1])]
    return mask[rows][:, columns]


@settings(max_examples=40, deadline=None)
@given(sides, sides, st.sampled_from([(8, 8), (6, 12)]))
def test_a_fit_takes_the_nearest_pixel_of_the_part_that_the_image_shows(
    height: int, width: int, size: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(height * 100 + width)
    mask = torch.randint(0, 5, (height, width), generator=generator, dtype=torch.uint8)
    image = torch.rand(3, height, width, generator=generator)
    shown, found = dense_fit(image, mask, size=size)
    assert torch.equal(shown, fit(image, size))
    scale = max(size[0] / height, size[1] / width)
    scaled = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    # A centre that lies on the line between two pixels may fall to either.
    for old, new in ((height, scaled[0]), (width, scaled[1])):
        assume(all((2 * place + 1) * old % (2 * new) for place in range(new)) or old == new)
    whole = nearest_by_loops(mask, scaled) if (height, width) != size else mask
    top, left = (round((a - b) / 2) for a, b in zip(scaled, size, strict=True))
    assert torch.equal(found, whole[top : top + size[0], left : left + size[1]])


@pytest.mark.parametrize("kind", ["resized_crop", "pad_crop", "none"])
def test_masks_follow_their_images(kind: str) -> None:
    """Where image and mask show the same drawing, they still do afterwards, up to soft edges."""
    drawing = torch.zeros(40, 32, dtype=torch.uint8)
    drawing[5:20, 3:12], drawing[22:36, 15:30] = 1, 1
    image = (255 * drawing)[None].clone()
    change = dense_transform(Augment(kind=kind, min_scale=0.3, padding=3), (24, 24))  # type: ignore[arg-type]
    places, mirrored = set(), set()
    for seed in range(24):
        torch.manual_seed(seed)
        shown, mask = change(image, drawing)
        assert shown.shape == (1, 24, 24)
        assert mask.shape == (24, 24)
        assert type(shown) is type(mask) is Tensor
        assert set(mask.flatten().tolist()) <= {0, 1}
        apart = (shown[0] > 127) != (mask > 0)
        assert float(apart.double().mean()) < 0.06, seed
        places.add(tuple(mask.flatten().tolist()))
        mirrored.add(int(mask.flip(1).flatten()[0]) == int(mask.flatten()[0]))
    assert len(places) > 1
    assert torch.equal(image[0], 255 * drawing), "the originals stay"


def test_a_batch_depends_on_seed_epoch_and_sample_alone() -> None:
    maker = DenseMaker(
        transform=dense_transform(Augment(min_scale=0.3), (8, 8)), preprocess=GREY, seed=3
    )
    generator = torch.Generator().manual_seed(0)
    samples = [
        Sample(
            image=torch.randint(0, 255, (1, 20, 16), generator=generator, dtype=torch.uint8),
            label=None,
            name=str(n),
            mask=torch.randint(0, 3, (20, 16), generator=generator, dtype=torch.uint8),
        )
        for n in range(4)
    ]
    numbered = [(1, index, sample) for index, sample in enumerate(samples)]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    whole = maker(numbered, [])
    assert torch.equal(torch.get_rng_state(), state)
    assert whole["masks"].dtype == torch.int64
    for index, one in enumerate(numbered):
        alone = maker([one], [])
        assert torch.equal(alone["images"][0], whole["images"][index])
        assert torch.equal(alone["masks"][0], whole["masks"][index])
    later = maker([(2, *rest) for _, *rest in numbered], [])  # type: ignore[misc]
    assert not torch.equal(later["masks"], whole["masks"])
    bare = Sample(image=samples[0].image, label=None, name="bare")
    with pytest.raises(ValueError, match="bare has no mask"):
        maker([(0, 0, bare)], [])
