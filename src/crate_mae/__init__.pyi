from .evaluation.backbones import load_backbone as load_backbone
from .models.autoencoder import CrateMAE as CrateMAE
from .models.autoencoder import MaskedOutput as MaskedOutput
from .models.autoencoder import build_model as build_model
from .models.classifier import CrateClassifier as CrateClassifier
from .models.config import PRESETS as PRESETS
from .models.config import ModelConfig as ModelConfig
from .models.config import Preprocess as Preprocess
from .training.finetune import finetune as finetune
from .training.pretrain import pretrain as pretrain
from .weights.weights_folder import load_model as load_model
from .weights.weights_folder import save_model as save_model

__version__: str
