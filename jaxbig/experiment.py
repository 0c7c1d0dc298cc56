"""An experiment: everything a run is, in one typed value that a Python file returns.

A Flax module is a typed, frozen, documented dataclass already, so the experiment holds the model itself, and
the command line's options and help come from the fields.
"""

import ast
import contextlib
import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import itertools
import json
import math
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn

from jaxbig.data.base import Data
from jaxbig.errors import Refused
from jaxbig.guard import Guard
from jaxbig.mesh import Mesh
from jaxbig.objectives.base import Objective
from jaxbig.optim.optimizers import Optimizer
from jaxbig.precision import Precision


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitializeFrom:
    """Another run whose parameters this one starts from; those that do not fit start fresh."""

    run: str = ""
    """Its folder; its best checkpoint is taken. Empty: start fresh."""
    pattern: str = ".*"
    """Which parameters are taken: a regular expression over their paths."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything a run is."""

    model: nn.Module
    objective: Objective
    data: Data
    optimizer: Optimizer
    mesh: Mesh = Mesh()
    precision: Precision = Precision()
    initialize_from: InitializeFrom = InitializeFrom()
    guard: Guard = Guard()
    steps: int
    """How many updates the run makes."""
    accumulate: int = 1
    """In how many parts, one after another, each batch's gradient is taken: less memory, equal results."""
    reproducible: int = 0
    """In how many chunks each batch's gradient is taken and added up in a fixed order, so that the bits of a run do not
    depend on how many devices share them; 0: as the compiler likes, which is faster. Its mesh is of `data` alone;
    on a CPU the command line fixes the number of threads too, and a GPU is deterministic as below."""
    deterministic: bool = False
    """On a GPU, take only kernels that give the same bits each time (XLA's flag xla_gpu_deterministic_ops): slower, and
    attention is plain, with the scores of all pairs in memory. A TPU, and a CPU with the same number of cores, give the
    same bits without it."""
    offload: bool = False
    """Keeps the optimizer's state in the host's memory, from where each step fetches it: less is held between steps;
    whether a step's peak falls, `plan` says."""
    seed: int = 0
    """Of everything random: initial values, order of examples, dropout."""
    log_every: int = 10
    """Steps between two lines of training metrics."""
    evaluate_every: int
    """Steps between two evaluations; the last step is always evaluated."""
    evaluate_batches: int | None = None
    """How many batches an evaluation has at most, the first ones; None: every example, once."""
    checkpoint_every: int
    """Steps between two checkpoints; the last step is always saved."""
    keep_last: int = 2
    """How many of the newest checkpoints are kept."""
    keep_best: int = 1
    """How many of the best evaluated checkpoints are kept besides."""
    readers: int = 1
    """Threads that read batches ahead, in this process or in each worker; 0 without workers: each when it is needed."""
    workers: int = 0
    """Processes that read batches ahead in place of this one, where threads do not keep up; evaluation is read by as
    many threads."""
    read_ahead: int = 1024
    """MiB of batches that are read ahead at most on each host, shared by its processes; one batch each at least."""

    def check(self) -> None:
        """`Refused` where a number cannot be right, before anything is built."""
        values = dict(flat(to_json(self)))
        for path, value in values.items():
            if not isinstance(value, int | float):
                continue
            name = next((part for part in reversed(path.split(".")) if not part.isdigit()), "")
            least, below = RANGES.get(name, (-math.inf, math.inf))
            most, wrong = (
                UP_TO.get(name, math.inf),
                f"--{path.replace('_', '-')} {value}: it must be",
            )
            if not math.isfinite(value):
                raise Refused(f"{wrong} a finite number.")
            if not least <= value < below or value > most:
                above = f" or more and below {below}" if below < math.inf else " or more"
                raise Refused(f"{wrong} {least}{f' to {most}' if most < math.inf else above}.")
            top = values.get(f"{path.removesuffix(name)}{RISING.get(name)}")
            if isinstance(top, int | float) and value > top:
                raise Refused(f"{wrong} at most its {RISING[name]}, {top}.")
        for name, where in itertools.product(("classes", "vocab"), ("model", "objective")):
            there, room = (getattr(each, name, None) for each in (self.data, getattr(self, where)))
            if (
                isinstance(there, int) and isinstance(room, int) and there > room
            ):  # what is beyond counts as nothing
                kind = {"vocab": "tokens"}.get(name, name)
                raise Refused(
                    f"the data has {there} {kind}, and --{where}.{name} {room}: it must be {there} or more."
                )
        self.guard.check()
        self.precision.check(getattr(self.model, "dtype", "float32"))
        try:
            re.compile(self.initialize_from.pattern)
        except re.error as error:
            raise Refused(
                f"--initialize-from.pattern {self.initialize_from.pattern!r} is no regular expression: {error}."
            ) from None


# What a field of such a name may hold, or each of its numbers, wherever it stands: least, and what it must stay below,
# or what it may reach. One name, one thing.
COUNTS = "steps log_every evaluate_every checkpoint_every keep_last batch length depth width heads layers channels "
COUNTS += "experts_per_token accumulate expansion rotary_base patch size "
COUNTS += (
    "classes types embedding kernel stride vocab kv_heads mlp_width max_length window target_vocab "
)
COUNTS += "loss_scale_steps remat_group evaluate_batches learned_from samples sample_rate hop mels read_ahead "
COUNTS += "ratio limit repeat count shape target_shape"
RANGES = {name: (1, math.inf) for name in COUNTS.split()}
RANGES |= {
    name: (0, 1) for name in ("dropout", "drop_path", "b1", "b2", "momentum", "smoothing", "rate")
}
FROM_0 = "keep_best reproducible readers workers warmup peak end clip l1 l2 weight_decay experts balance router_z_loss "
FROM_0 += "loss_scale most_skips spike stuck_after brightness contrast saturation magnitude padding skip_bad_records "
FROM_0 += "canvas lowest highest"
RANGES |= {name: (0, math.inf) for name in FROM_0.split()}
RANGES |= {
    "seed": (0, 2**32),
    "eval_share": (0, 1),
    "alpha": (1e-3, math.inf),
    "floor": (1e-30, math.inf),
}
RANGES |= {"share": (1e-3, math.inf), "std": (1e-6, math.inf)}
UP_TO = {"probability": 1, "least": 1, "most": 1, "share": 1, "hue": 0.5}
RANGES |= {name: (0, math.inf) for name in UP_TO if name not in RANGES}
RISING = {"least": "most", "lowest": "highest", "smallest": "largest"}

# What may change when a run goes on: where it runs, how far (a schedule then follows the new length), what it keeps.
PACE = (
    "log_every",
    "evaluate_every",
    "evaluate_batches",
    "checkpoint_every",
    "keep_last",
    "keep_best",
)
PACE += ("readers", "workers", "read_ahead")
FREE = ("mesh", "steps", "accumulate", "deterministic", "offload", "guard", *PACE)
FREE_OF_DATA = ("skip_bad_records",)  # a batch is the same, however many more may be left out


def to_json(value: Any) -> Any:
    """An experiment, or any field of one, as plain JSON: a dataclass is its type's name and its fields."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hidden = ("parent", "name") if isinstance(value, nn.Module) else ()
        names = [field.name for field in dataclasses.fields(value) if field.name not in hidden]
        return {
            "type": type(value).__name__,
            **{name: to_json(getattr(value, name)) for name in names},
        }
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    raise Refused(
        f"an experiment's field holds {value!r}, a {type(value).__name__}: use numbers, text or dataclasses."
    )


def flat(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Nested JSON as (dotted path, value), as options are written on the command line."""
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [
            line
            for name, item in items
            for line in flat(item, f"{path}.{name}" if path else str(name))
        ]
    return [(path, value)]


def identity(experiment: Any, data_identity: str) -> dict[str, Any]:
    """What must not change when a run goes on, from an experiment's JSON: seed, data, batch, model, ..."""
    fixed = {name: value for name, value in experiment.items() if name not in FREE}
    fixed["data"] = {
        name: value for name, value in fixed["data"].items() if name not in FREE_OF_DATA
    }
    return {**fixed, "data_identity": data_identity}


def fingerprint(identity: dict[str, Any]) -> str:
    """A digest of `identity`: equal fingerprints may continue each other."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def diff(old: Any, new: Any, path: str = "") -> list[str]:
    """What differs between two JSON values, a line each: `optimizer.rate.peak: 0.001 -> 0.002`."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        return [
            line
            for n in names
            for line in diff(old.get(n), new.get(n), f"{path}.{n}" if path else n)
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for i, (a, b) in pairs for line in diff(a, b, f"{path}.{i}")]
    texts = [each if isinstance(each, str) else json.dumps(each) for each in (old, new)]
    same = next((place for place, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), 0)
    return [] if old == new else [f"{path}: {' -> '.join(_short(text, same) for text in texts)}"]


def _short(text: str, same: int) -> str:
    """A text, or its beginning and, where it has stayed the same for longer, what stands where it has not."""
    if len(text) < 100:
        return text
    return text[:60] + "..." + (text[-20:] if same < 60 else text[same - 10 : same + 20] + "...")


def available() -> dict[str, Path]:
    """The experiment files by name: those in ./experiments, then those that come with jaxbig."""
    folders = [Path.cwd() / "experiments", Path(__file__).parent.parent / "experiments"]
    files = [
        file
        for folder in folders
        for file in sorted(folder.glob("*.py"))
        if file.stem != "__init__"
    ]
    return {file.stem: file for file in reversed(files)}


def summary(file: Path) -> str:
    """The first line of an experiment file's docstring, without running it."""
    try:
        return (ast.get_docstring(ast.parse(file.read_bytes())) or "").split("\n")[0]
    except (SyntaxError, ValueError) as error:
        return f"cannot be read: line {getattr(error, 'lineno', None) or '?'}: {error}"


def find(name: str) -> types.ModuleType:
    """The module of an experiment by its name, `.py` path, or dotted name; `Refused` says what is nearest."""
    known = available()
    if name in known or name.endswith(".py"):
        return import_file(known.get(name, Path(name)))
    if "." in name and all(part.isidentifier() for part in name.split(".")):
        return import_dotted(name)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"the nearest are {', '.join(near)}" if near else "`jaxbig list` names them"
    raise Refused(f"no experiment named {name!r}: {hint}.")


def load(name: str) -> Experiment:
    """What `config()` in the module that `find` finds returns; `Refused` if that is no experiment."""
    module = find(name)
    if not callable(getattr(module, "config", None)):
        raise Refused(
            f"{module.__file__} has no function config(): it must return a jaxbig Experiment."
        )
    experiment = module.config()
    if not isinstance(experiment, Experiment):
        raise Refused(
            f"config() in {module.__file__} returned {type(experiment).__name__}, not an Experiment."
        )
    return experiment


@contextlib.contextmanager
def importing(folder: Path) -> Iterator[None]:
    """A folder's modules can be imported inside; `Refused` names the line of a syntax error."""
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    except SyntaxError as error:
        raise Refused(f"{error.filename} line {error.lineno}: {error.msg}.") from None
    finally:
        sys.path.pop(0)


def import_file(path: Path) -> types.ModuleType:
    """Runs a `.py` file as a module; it can import what lies beside it."""
    name = f"jaxbig_experiment_{path.stem}"  # no other module's name
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if not path.is_file() or spec is None or spec.loader is None:
        raise Refused(
            f"no experiment file {path}: name a .py file, or one of those that `jaxbig list` shows."
        )
    module = sys.modules[name] = importlib.util.module_from_spec(
        spec
    )  # where dataclasses look for it
    with importing(path.parent):
        spec.loader.exec_module(module)
    return module


def import_dotted(name: str) -> types.ModuleType:
    """Imports a module by its dotted name, as Python would from the current folder."""
    with importing(Path.cwd()):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there, and lacks one that it needs
            raise Refused(
                f"no module {name!r} ({error}): name one that Python can import from here."
            ) from None
