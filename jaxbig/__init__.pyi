"""The names of `import jaxbig as jb`, each imported when it is first used."""

from . import data as data
from . import evaluators as evaluators
from . import models as models
from . import objectives as objectives
from . import optim as optim
from .config.callback import Callback as Callback
from .config.discover import load as load
from .config.evaluator import Evaluator as Evaluator
from .config.evaluator import Every as Every
from .config.experiment import Experiment as Experiment
from .config.experiment import InitializeFrom as InitializeFrom
from .config.guard import Guard as Guard
from .config.lora import LoRA as LoRA
from .config.precision import Precision as Precision
from .distributed.mesh import Mesh as Mesh
from .errors import Failed as Failed
from .errors import Refused as Refused
from .inference.export import export as export
from .inference.generate import generate as generate
from .inference.predict import predict as predict
from .tools.examine import check as check
from .tools.examine import describe as describe
from .tools.examine import inspect_batch as inspect_batch
from .tools.examine import plan as plan
from .train.apply import apply as apply
from .train.average import average as average
from .train.import_pretrained import import_pretrained as import_pretrained
from .train.passes import Evaluation as Evaluation
from .train.run import Run as Run
from .train.run import evaluate as evaluate
from .train.run import fit as fit
from .train.run import restore as restore

__version__: str
