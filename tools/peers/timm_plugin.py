"""A plugin of pytest: timm's own test files over the models of this package, and no others.

timm parametrises its tests by `list_models(...)` when they are collected. Here that function lists
our models alone, and counts them among token models with intermediate features, as a line in each
of timm's two lists would. Its files are not touched.
"""

import pytest
import timm
import timm.models
import torch

from crate_mae.timm import MODULE, PREFIX

_theirs = timm.models.list_models


def list_models(filter="", module="", pretrained=False, exclude_filters="", **options):
    """As timm's, of our models."""
    wanted, without, modules = (
        [value] if isinstance(value, str) and value else list(value)
        for value in (filter, exclude_filters, module)
    )
    if "vit_*" in wanted:
        wanted.append(f"{PREFIX}*")
    if "vit_*" in without:
        without.append(f"{PREFIX}*")
    if "vision_transformer" in modules:
        modules.append(MODULE)
    found = _theirs(wanted, modules, pretrained, without, **options)
    return [name for name in found if name.startswith(PREFIX)]


def list_pretrained(filter="", exclude_filters=""):
    """As timm's, of our models."""
    return list_models(filter, pretrained=True, exclude_filters=exclude_filters, include_tags=True)


for place in (timm, timm.models):
    place.list_models, place.list_pretrained = list_models, list_pretrained


THREE_LEVELS = ("test_model_forward_intermediates", "test_model_forward_intermediates_features")
"""Tests that want features of three levels, which a model of two layers does not have."""


def _too_shallow(item, name):
    if item.originalname not in THREE_LEVELS:
        return False
    with torch.device("meta"):
        return len(timm.create_model(name.partition(".")[0]).blocks) < 3


def pytest_collection_modifyitems(config, items):
    """Leave out tests of models that timm's files name themselves."""
    ours, others = [], []
    for item in items:
        name = item.callspec.params.get("model_name") if hasattr(item, "callspec") else None
        mine = isinstance(name, str) and name.startswith(PREFIX)
        (ours if mine else others).append(item)
        if mine and _too_shallow(item, name):
            reason = f"{name} has two layers, and this wants features of three"
            item.add_marker(pytest.mark.skip(reason=reason))
    config.hook.pytest_deselected(items=others)
    items[:] = ours
