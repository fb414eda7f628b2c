"""A plugin of pytest: timm's own test files over the models of this package, and no others.

timm parametrises its tests by `list_models(...)` when they are collected. Here that function lists
our models alone, and counts them among token models with intermediate features, as a line in each
of timm's two lists would. Its files are not touched.
"""

import timm
import timm.models

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


def pytest_collection_modifyitems(config, items):
    """Leave out tests of models that timm's files name themselves."""
    ours, others = [], []
    for item in items:
        name = item.callspec.params.get("model_name") if hasattr(item, "callspec") else None
        (ours if isinstance(name, str) and name.startswith(PREFIX) else others).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = ours
