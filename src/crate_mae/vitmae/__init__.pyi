from .classifier import ViTClassifier as ViTClassifier
from .encoder import ViTEncoder as ViTEncoder
from .model import ViTMAE as ViTMAE
from .model import build_vitmae as build_vitmae
from .model import vitmae_baseline as vitmae_baseline
from .model import vitmae_config as vitmae_config
