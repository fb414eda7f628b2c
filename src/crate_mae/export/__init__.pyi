from .engines import ExportedEncoder as ExportedEncoder
from .engines import engine_for as engine_for
from .exporting import Exported as Exported
from .exporting import export_model as export_model
from .runtimes import FORMATS as FORMATS
from .runtimes import load_exported as load_exported
