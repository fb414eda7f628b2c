"""The core works without any extra, and what is missing names the command that brings it."""

import tomllib
from pathlib import Path

from processes import python

from crate_mae.common.extras import EXTRA_OF, with_command

ROOT = Path(__file__).parents[2]

BARE = f"import sys; sys.modules.update(dict.fromkeys({sorted(EXTRA_OF)!r}))\n"
"""A process in which none of those packages can be imported."""


def test_every_extra_is_one_of_the_project() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert set(EXTRA_OF.values()) <= set(extras)


def test_the_core_loads_decodes_and_encodes() -> None:
    code = BARE + (
        "import numpy, torch\n"
        "from PIL import Image\n"
        "from crate_mae import load_model\n"
        "from crate_mae.batches.transforms import prepare\n"
        "from crate_mae.sources import decode_image\n"
        "model = load_model('cifar10-shallow')\n"
        "image = Image.fromarray(numpy.zeros((40, 50, 3), numpy.uint8))\n"
        "print(tuple(model.encode(prepare([decode_image(image, 'x')], model.preprocess)).shape))\n"
    )
    done = python(code)
    assert done.stdout.strip() == "(1, 65, 192)", done.stderr


def test_what_is_missing_names_the_command() -> None:
    code = BARE + "from crate_mae import pretrain\n"
    done = python(code)
    assert done.returncode != 0
    assert 'pip install "crate-mae[train]"' in done.stderr


def test_other_errors_stay_what_they_are() -> None:
    other = ImportError("cannot import name 'x'")
    assert with_command(other) is other
