"""CRATE-MAE in Hugging Face transformers: importing this registers it with the Auto classes.

    import crate_mae.transformers
    from transformers import AutoModel

    model = AutoModel.from_pretrained("FOLDER")

Needs `pip install "crate-mae[transformers]"`; nothing else of the package imports it.
"""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
)

from crate_mae.transformers.configuration_crate_mae import CrateMAEConfig
from crate_mae.transformers.image_processing_crate_mae import CrateMAEImageProcessor
from crate_mae.transformers.modeling_crate_mae import (
    CrateMAEBackbone,
    CrateMAEForImageClassification,
    CrateMAEForPreTraining,
    CrateMAEForPreTrainingOutput,
    CrateMAEModel,
    CrateMAEPreTrainedModel,
)

__all__ = [
    "CrateMAEBackbone",
    "CrateMAEConfig",
    "CrateMAEForImageClassification",
    "CrateMAEForPreTraining",
    "CrateMAEForPreTrainingOutput",
    "CrateMAEImageProcessor",
    "CrateMAEModel",
    "CrateMAEPreTrainedModel",
]


def _register() -> None:
    """Make the Auto classes know what `model_type` "crate_mae" is."""
    AutoConfig.register(CrateMAEConfig.model_type, CrateMAEConfig)
    for auto, model in (
        (AutoModel, CrateMAEModel),
        (AutoModelForPreTraining, CrateMAEForPreTraining),
        (AutoModelForImageClassification, CrateMAEForImageClassification),
        (AutoBackbone, CrateMAEBackbone),
    ):
        auto.register(CrateMAEConfig, model)
    AutoImageProcessor.register(
        CrateMAEConfig, image_processor_classes={"torchvision": CrateMAEImageProcessor}
    )


_register()
