"""In the place of transformers' tests/exporters/test_export.py, which no source distribution holds.

Every class goes through transformers' own exporter, with fixed and with free sizes, and must give
what eager code gives.
"""

import copy

import torch
from transformers.exporters import DynamoConfig, DynamoExporter
from transformers.testing_utils import torch_device


def _tensors(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    parts = tree.values() if hasattr(tree, "values") else tree
    many = isinstance(tree, dict | tuple | list)
    return [tensor for part in parts for tensor in _tensors(part)] if many else []


class ExportTesterMixin:
    """Needs `model_tester.export_inputs(cls)`: what makes a model's output deterministic."""

    test_torch_exportable = True

    def test_torch_export(self):
        """Exported and eager outputs agree to 1e-4."""
        if not self.test_torch_exportable:
            self.skipTest("said not to be exportable")
        for cls in self.all_model_classes:
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            model = cls(config).eval().to(torch_device)
            inputs = self._prepare_for_class(inputs, cls)
            inputs |= self.model_tester.export_inputs(cls)
            for free in (False, True):
                with self.subTest(f"{cls.__name__}, free sizes: {free}"), torch.no_grad():
                    eager = _tensors(dict(model(**copy.deepcopy(inputs)).items()))
                    exported = DynamoExporter().export(
                        model, copy.deepcopy(inputs), config=DynamoConfig(dynamic=free)
                    )
                    found = _tensors(dict(exported(**copy.deepcopy(inputs)).items()))
                    assert len(eager) == len(found)
                    for one, other in zip(eager, found, strict=True):
                        torch.testing.assert_close(other.to(one.dtype), one, atol=1e-4, rtol=1e-4)
