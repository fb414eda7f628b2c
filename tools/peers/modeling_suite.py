"""transformers' common tests on the classes of `crate_mae.transformers`.

Lies among transformers' own tests when it runs (`tools/peers/run.py`), as
tests/models/crate_mae/test_modeling_crate_mae.py: hence the relative imports.
"""

import unittest

import numpy as np
import torch
from transformers.models.auto import modeling_auto
from transformers.testing_utils import require_torch, torch_device

from crate_mae.transformers import (
    CrateMAEBackbone,
    CrateMAEConfig,
    CrateMAEForImageClassification,
    CrateMAEForPreTraining,
    CrateMAEModel,
)

from ...test_backbone_common import BackboneTesterMixin
from ...test_configuration_common import ConfigTester
from ...test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor

# The common tests know by name which models take labels and which have no loss.
modeling_auto.MODEL_MAPPING_NAMES["crate_mae"] = "CrateMAEModel"
modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES["crate_mae"] = "CrateMAEForPreTraining"
modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES["crate_mae"] = "CrateMAEBackbone"
modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES["crate_mae"] = (
    "CrateMAEForImageClassification"
)


class CrateMAEModelTester:
    """A small model and inputs for it, as the common tests ask for them."""

    def __init__(self, parent, mask_tokens="encoder"):
        self.parent, self.mask_tokens = parent, mask_tokens
        self.batch_size, self.image_size, self.patch_size, self.num_channels = 5, 16, 4, 3
        self.is_training, self.num_labels = True, 3
        self.hidden_size, self.num_hidden_layers, self.num_attention_heads = 32, 2, 4
        self.mask_ratio = 0.5
        self.num_patches = (self.image_size // self.patch_size) ** 2
        self.mask_length, self.num_masks = self.num_patches, self.num_patches // 2
        self.seq_length = 1 + self.num_patches
        self.attn_implementation = "eager"

    def get_config(self):
        """A configuration of two layers on each side."""
        return CrateMAEConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            num_channels=self.num_channels,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            decoder_num_hidden_layers=2,
            decoder_num_attention_heads=self.num_attention_heads,
            mask_tokens=self.mask_tokens,
            mask_ratio=self.mask_ratio,
            attn_implementation=self.attn_implementation,
        )

    def prepare_config_and_inputs(self):
        """Configuration, images and labels."""
        side = self.image_size
        images = floats_tensor([self.batch_size, self.num_channels, side, side])
        return self.get_config(), images, ids_tensor([self.batch_size], self.num_labels)

    def prepare_config_and_inputs_for_common(self):
        """Configuration and the arguments of a model."""
        config, images, _ = self.prepare_config_and_inputs()
        return config, {"pixel_values": images}

    def noise(self):
        """The same noise for every call, so that the same patches are removed."""
        numbers = np.random.default_rng(0).random((self.batch_size, self.num_patches))
        return torch.from_numpy(numbers).float().to(torch_device)

    def export_inputs(self, cls):
        """What makes pre-training deterministic."""
        return {"noise": self.noise()} if cls is CrateMAEForPreTraining else {}


@require_torch
class CrateMAEModelTest(ModelTesterMixin, unittest.TestCase):
    """Mask tokens in the encoder: base model, pre-training, classification."""

    all_model_classes = (CrateMAEModel, CrateMAEForPreTraining, CrateMAEForImageClassification)
    test_resize_embeddings = False
    mask_tokens = "encoder"

    def setUp(self):
        self.model_tester = CrateMAEModelTester(self, self.mask_tokens)
        self.config_tester = ConfigTester(
            self, config_class=CrateMAEConfig, has_text_modality=False, hidden_size=48
        )

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if model_class is CrateMAEForPreTraining:
            count = inputs["pixel_values"].shape[0]
            inputs["noise"] = self.model_tester.noise()[:1].repeat(count, 1)
        return inputs

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip("images are embedded by a convolution: there is no nn.Embedding to exchange")
    def test_inputs_embeds(self):
        pass

    def test_model_get_set_embeddings(self):
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config)
            assert isinstance(model.get_input_embeddings(), torch.nn.Conv2d)
            assert model.get_output_embeddings() is None

    def test_predicted_patches_have_the_size_of_patches(self):
        config, images, _ = self.model_tester.prepare_config_and_inputs()
        model = CrateMAEForPreTraining(config).to(torch_device).eval()
        found = model(images, noise=self.model_tester.noise())
        tester = self.model_tester
        values = tester.patch_size**2 * tester.num_channels
        assert found.logits.shape == (tester.batch_size, tester.num_patches, values)
        assert (found.mask.sum(dim=1) == tester.num_masks).all()


@require_torch
class CrateMAEDecoderTokensTest(CrateMAEModelTest):
    """Mask tokens in the decoder: the encoder sees visible patches alone."""

    mask_tokens = "decoder"

    def setUp(self):
        super().setUp()
        # Tokens of the pre-training model's encoder are fewer than those of the others.
        self.all_model_classes = (CrateMAEModel, CrateMAEForImageClassification)


@require_torch
class CrateMAEDecoderTokensPreTrainingTest(CrateMAEModelTest):
    """Mask tokens in the decoder: pre-training, whose encoder sees half the patches."""

    all_model_classes = (CrateMAEForPreTraining,)
    mask_tokens = "decoder"

    def setUp(self):
        super().setUp()
        tester = self.model_tester
        tester.seq_length = 1 + tester.num_patches - tester.num_masks


@require_torch
class CrateMAEBackboneTest(BackboneTesterMixin, unittest.TestCase):
    """Feature maps of layers."""

    all_model_classes = (CrateMAEBackbone,)
    config_class = CrateMAEConfig
    has_attentions = True

    def setUp(self):
        self.model_tester = CrateMAEModelTester(self)
