"""Asks of an experiment what changes what: gradients, terms of the loss, leaks, and batches.

All is asked of a shrunken copy on one device, in float32, on random batches and near the initial
parameters. What may not change is compared between two calls of one compiled program, whose inputs
alone differ. What is masked there is multiplied by an exact 0, so the bits are equal but where
numbers change their place, as tokens that are sorted by expert: `ROUNDING` is above that.

Letters in shape comments: B batch, L length.
"""

import contextlib
import dataclasses
import functools
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.arrays.tree import flatten_with_paths, path_name
from jaxbig.config.experiment import Experiment
from jaxbig.config.precision import Precision
from jaxbig.data.core.dataset import Rows
from jaxbig.distributed.mesh import Mesh
from jaxbig.distributed.sharding import device_put_batch
from jaxbig.errors import Refused
from jaxbig.models.base import model_class
from jaxbig.program.gradient import PLACE, by_row, make_gradient, make_loss
from jaxbig.program.program import Program, make_eval_step, make_program
from jaxbig.program.teacher import without_teacher
from jaxbig.tools.check_sharding import check, devices_for
from jaxbig.tools.shrink import fewer, narrow_program, random_batch, round_up

PARAMETERS = 2**20
"""The most parameters of the copy: what causes what does not depend on the widths."""
ROWS = 16
"""Of a batch; an evaluation is also made in batches of a quarter of that."""
TRIES = 4
"""Batches of which one must give each parameter a gradient, each with a shorter counted part."""
ROUNDING = 1e-5
"""What may differ, of the largest number."""
LISTED = 5
"""Names in an answer, at most."""
WEIGHT = re.compile(r"(weight|loss|smoothing)$")
"""The names of fields that multiply a term of the loss."""


Found = tuple[str, str]
"""What was asked of, and what is wrong, or nothing."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What became of a question; `ok` is None where it was not asked, and `found` says why."""

    question: str
    of: str
    ok: bool | None
    found: str


@dataclasses.dataclass(frozen=True)
class Case:
    """A shrunken experiment with parameters and batches of which questions are asked."""

    program: Program
    state: Any

    @property
    def experiment(self) -> Experiment:
        return self.program.experiment

    @functools.cached_property
    def evaluated(self) -> Any:
        """The state as an evaluation uses it."""
        return self.program.merged(self.state)

    def batch(self, seed: int = 0) -> Rows:
        """A random batch, all of which counts."""
        return random_batch(self.experiment, seed)

    def put(self, batch: Rows) -> Any:
        return device_put_batch(batch, self.program.mesh)

    @functools.cached_property
    def evaluate(self) -> Any:
        """`(mask, state, batch) -> (derivatives of the total loss by the mask, sums)`."""
        step = make_eval_step(self.experiment)

        def total(mask: jax.Array, state: Any, batch: Any) -> tuple[jax.Array, Any]:
            sums, _ = step(state, {**batch, "mask": mask})
            return sums["loss"].total, sums

        return jax.jit(jax.grad(total, has_aux=True))

    def losses(self, batch: Rows) -> np.ndarray:
        """The loss of each number of the mask, in its shape: a total is a sum of losses times mask,
        so these are its derivatives by the mask. All 0 where the mask is not multiplied."""
        return np.asarray(self.evaluate(batch["mask"], self.evaluated, self.put(batch))[0])

    def sums(self, batch: Rows) -> Any:
        """The sums of an evaluation's metrics, in float64."""
        made = self.evaluate(batch["mask"], self.evaluated, self.put(batch))[1]
        return jax.tree.map(lambda each: np.asarray(each, np.float64), made)


Ask = Callable[[Case], Found]
"""A question; it is `Refused` where it cannot be asked."""


def check_all(experiment: Experiment, tolerance: float | None = None) -> dict[str, Any]:
    """What `check_sharding.check` returns, and `causes`, a dictionary an answer; `ok` if both are.

    On a mesh of one device there is nothing to compare, and of the first only `mesh` and `ok`.

    Raises:
      Refused: the experiment or the tolerance is invalid.
    """
    compared: dict[str, Any] = {"mesh": None, "ok": True}
    if tolerance is not None or devices_for(experiment.mesh) > 1:
        compared = check(experiment, tolerance)
    found = causes(experiment)
    ok = compared["ok"] and all(each.ok is not False for each in found)
    return {**compared, "ok": ok, "causes": [dataclasses.asdict(each) for each in found]}


def causes(experiment: Experiment) -> list[Answer]:
    """Asks all questions of an experiment, on one device.

    Raises:
      Refused: the experiment is invalid.
    """
    with hastily():
        program = alone(experiment, ROWS)
        with program.activate():
            case = Case(program, begin(program))
            return [asked(question, ask, case) for question, ask in QUESTIONS.items()]


def asked(question: str, ask: Ask, case: Case) -> Answer:
    """The answer to a question."""
    try:
        of, wrong = ask(case)
    except Refused as error:
        return Answer(question, "", None, f"not asked: {error}")
    return Answer(question, of, not wrong, wrong or "ok")


@contextlib.contextmanager
def hastily() -> Iterator[None]:
    """Compiles in a fraction of the time; the programs run once or twice."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def alone(experiment: Experiment, rows: int) -> Program:
    """The program of a small copy on one device, in batches of `rows` rows."""
    kind = model_class(experiment.model)
    model = kind.with_dtype(experiment.model, "float32")
    rows = round_up(rows, kind.microbatch_count(experiment.model) or 1)
    copy = dataclasses.replace(
        experiment,
        model=experiment.model if model is None else model,
        objective=without_teacher(experiment.objective),
        data=dataclasses.replace(experiment.data, batch=rows),
        mesh=Mesh(data=1),
        precision=Precision(),
        accumulate=1,
        reproducible=0,
        offload=False,
    )
    devices = jax.devices()[:1]
    shape = copy.mesh.build(devices).shape
    return narrow_program(fewer(copy, shape, rows), devices, PARAMETERS)


def begin(program: Program) -> Any:
    """The first state, with all parameters moved, and averages and copies of them likewise."""
    state: Any = program.init()
    tree = jax.tree.structure(state.params)
    variables = {
        name: moved(each) if jax.tree.structure(each) == tree else each
        for name, each in state.variables.items()
    }
    return state.replace(params=moved(state.params), variables=variables)


def moved(params: Any) -> Any:
    """The parameters with small random numbers added, relative to what they are: no gate that is 0
    or symmetry at first hides a cause."""

    def move(path: Any, leaf: jax.Array) -> jax.Array:
        draw = np.random.default_rng(zlib.crc32(path_name(path).encode()))
        before = np.asarray(leaf)
        size = np.sqrt(np.mean(np.square(before))) or 1.0
        noise = 0.1 * size * draw.standard_normal(leaf.shape)
        return jax.device_put((before + noise).astype(leaf.dtype), leaf.sharding)

    return jax.tree_util.tree_map_with_path(move, params)


def gradients(case: Case) -> Found:
    """Parameters, but frozen ones, whose gradient is 0 everywhere in several batches."""
    experiment = case.experiment
    find = jax.jit(make_gradient(experiment, case.program.mesh))
    frozen = experiment.optimizer.frozen
    still = {
        path
        for path in flatten_with_paths(case.state.params)
        if frozen is None or not re.search(frozen, path)
    }
    of = f"{len(still)} parameters"
    variables = case.state.variables
    counted = False
    for number in range(TRIES):
        batch = counting(case.batch(number), 4**number)
        found, sums, variables = find(
            case.state.params, variables, case.put(batch), jnp.int32(number)
        )
        counted |= bool(sums["loss"].weight != 0)
        leaves = flatten_with_paths(found)
        still -= {path for path in still if np.any(np.asarray(leaves[path]))}
        if not still:
            return of, ""
    if not counted:
        raise Refused("no loss counts on random numbers.")
    return of, (
        f"the gradient is 0 of {listed(sorted(still))}: use each in the loss, without "
        f"stop_gradient, or name it in --optimizer.frozen"
    )


def counting(batch: Rows, part: int) -> Rows:
    """The batch with a first part of each row counted, where the mask is of positions."""
    mask = batch["mask"].copy()
    if mask.ndim > 1:
        mask[:, max(mask.shape[1] // part, 1) :] = 0
    return {**batch, "mask": mask}


def terms(case: Case) -> Found:
    """Weights of terms whose change changes neither loss nor gradient."""
    experiment = case.experiment
    batch = case.put(counting(case.batch(), 2))
    batch[PLACE] = jnp.arange(len(batch["mask"]))  # for the data's transforms
    params = case.evaluated.params
    given = params, case.evaluated.variables, batch, jnp.int32(0)
    of_parts: dict[str, Any] = {"objective": experiment.objective}
    before = jax.jit(make_loss(experiment))(*given)
    if "auxiliary_loss" in before[1][0]:
        of_parts["model"] = experiment.model
    weights = {
        f"{part}.{field.name}": getattr(config, field.name)
        for part, config in of_parts.items()
        for field in dataclasses.fields(config)
        if WEIGHT.search(field.name) and type(getattr(config, field.name)) in (int, float)
    }
    on = {path: weight for path, weight in weights.items() if weight}
    if not on:
        raise Refused("the loss has no weight that is not 0.")

    def moves(path: str, weight: float) -> bool:
        changed = experiment.replace(**{path: weight * 7 / 8})  # less: it may be a share
        if jax.jit(make_loss(changed))(*given)[0] != before[0]:
            return True
        both = [
            jax.jit(jax.grad(make_loss(each), has_aux=True))(*given)[0]
            for each in (experiment, changed)
        ]
        return not all(map(np.array_equal, *map(jax.tree.leaves, both)))

    still = [path for path, weight in on.items() if not moves(path, weight)]
    return ", ".join(on), (
        f"{listed(still)} changes neither loss nor gradient: its term is multiplied by 0, or not "
        f"added"
        if still
        else ""
    )


def later(case: Case) -> Found:
    """Whether what is said of a token depends on later ones, and on those before."""
    field = case.experiment.objective.ordered
    if not field:
        name = type(case.experiment.objective).__name__
        raise Refused(f"{name} does not say that its positions are in order.")
    check_positions(case, field)
    batch = case.batch()
    at = (batch[field].shape[1] - 1) // 2  # within a chunk of any even size
    of = f"{field} from {at} on"
    expected = case.losses(batch)
    after = [mixed(batch, case.batch(1), {field: np.s_[:, each]}) for each in (np.s_[at:], at)]
    changed = ~same(case.losses(after[0]), expected)[:, :at]
    if changed.any():
        place = np.flatnonzero(changed.any(axis=0))[-1]
        return of, (
            f"the loss at position {place} depends on {field} from {at} on: mask what is later, "
            f"and look for a shift"
        )
    if same(case.losses(after[1]), expected)[:, at + 1 :].all():
        return of, f"no loss depends on {field} before its position: the model does not look back"
    return of, ""


def check_positions(case: Case, field: str) -> None:
    """`Refused` if there is no loss of each position of a field [B, L]."""
    batch = case.batch()
    if batch["mask"].shape != batch[field].shape[:2]:
        raise Refused(f"the mask is not of the positions of {field}.")
    if not case.losses(batch).any():
        raise Refused("the loss is no sum of losses times the mask.")


def documents(case: Case) -> Found:
    """Whether a document packed into a row depends on another."""
    batch = case.batch()
    if "segments" not in batch:
        raise Refused("the data packs no documents into a row.")
    check_positions(case, "inputs")
    length = batch["inputs"].shape[1]
    at = (length - 1) // 2
    of = f"documents of {at} and {length - at} tokens"
    places = np.arange(length)
    both = {"segments": 1 + (places >= at), "positions": np.where(places < at, places, places - at)}
    for name, row in both.items():
        if name in batch:
            batch[name] = np.broadcast_to(row, batch[name].shape).astype(batch[name].dtype)
    expected = case.losses(batch)
    first = np.s_[:, :at]
    second = np.s_[:, at:]
    for changed, kept, words in ((first, second, "before"), (second, first, "after")):
        found = case.losses(mixed(batch, case.batch(1), {"inputs": changed}))
        if not same(found, expected)[kept].all():
            return of, (
                f"a document's loss depends on that {words} it in its row: attention and state "
                f"must end at a change of segments"
            )
    return of, ""


def padding(case: Case) -> Found:
    """Which metric depends on padding: whole rows, and what follows the counted part of a row."""
    check_feeds(case)
    other = case.batch(1)
    batch = counting(case.batch(), 2)
    batch["mask"][-1] = 0
    if "segments" in batch:
        batch["segments"] = np.where(batch["mask"] > 0, batch["segments"], 0)
    expected = case.sums(batch)
    kinds = padded(case, batch)
    of = ", ".join(kinds)
    for words, places in kinds.items():
        found = case.sums(mixed(batch, other, places))
        if wrong := [name for name, each in found.items() if not equal(each, expected[name])]:
            return of, (
                f"{listed(wrong)} depends on {words}: multiply by the mask, and hide it there"
            )
    return of, ""


def padded(case: Case, batch: Rows) -> dict[str, dict[str, Any]]:
    """Places of padding by field, of each kind of padding by its name."""
    mask = batch["mask"]
    kinds: dict[str, dict[str, Any]] = {
        "rows of padding": {name: np.s_[-1:] for name in but_mask(batch)}
    }
    for field, lengths in (("inputs", "lengths"), ("other", "other_lengths")):
        if lengths in batch and field in batch:
            kinds[f"{field} beyond {lengths}"] = {field: np.s_[:, int(batch[lengths][0]) :]}
    end = mask.shape[1] // 2 if mask.ndim > 1 else 0
    hidden = case.experiment.objective.ordered == "inputs" or "segments" in batch
    if end and hidden and batch["inputs"].shape[:2] == mask.shape[:2]:
        kinds["inputs where the mask is 0"] = {"inputs": np.s_[:, end:]}
    targets = batch.get("targets")
    if end and targets is not None and targets.shape[: mask.ndim] == mask.shape:
        kinds["targets where the mask is 0"] = {"targets": np.s_[:, end:]}
    return kinds


def rows(case: Case) -> Found:
    """Whether a row depends on another, by their losses or by what is predicted."""
    check_feeds(case)
    batch = case.batch()
    after = mixed(batch, case.batch(1), {name: np.s_[:1] for name in but_mask(batch)})
    found = [seen(case, each) for each in (batch, after)]
    wrong = [
        name for name, each in found[0].items() if not same(found[1][name][1:], each[1:]).all()
    ]
    return ", ".join(found[0]), (
        f"{listed(wrong)} of a row depends on another row: reduce over no axis of rows, or say "
        f"mixes_rows = True of the objective"
        if wrong
        else ""
    )


def seen(case: Case, batch: Rows) -> dict[str, np.ndarray]:
    """What a batch's rows give, arrays [B, ...] by name."""
    if not case.experiment.objective.mixes_rows and (losses := case.losses(batch)).any():
        return {"loss": losses}
    made, _ = case.program.predict(case.evaluated, case.put(batch), 1)
    return {name: np.asarray(each) for name, each in made.items()}


def batches(case: Case) -> Found:
    """Which metric differs where the same rows are evaluated in smaller batches."""
    check_feeds(case)
    objective = case.experiment.objective
    if objective.mixes_rows:
        raise Refused(f"{type(objective).__name__} compares the rows of a batch with each other.")
    batch = case.batch()
    rows = len(batch["mask"])
    size = rows // 4
    data = dataclasses.replace(case.experiment.data, batch=size)
    program = make_program(case.experiment.replace(data=data), list(case.program.mesh.devices.flat))
    mask = batch["mask"]
    if mask.ndim > 1:  # rows that count unequally
        ends = np.random.default_rng(0).integers(1, mask.shape[1] + 1, rows)
        mask[np.arange(mask.shape[1])[None] >= ends[:, None]] = 0
    mask[1 - size :] = 0  # the last batch has one row
    whole = objective.summarize(case.sums(batch))
    carry, others = by_row(case.state.variables)
    few = jax.tree.map(lambda each: each[:size], carry)
    parts = Case(program, case.state.replace(variables={**others, **few}))
    every = [
        parts.sums({name: each[at : at + size] for name, each in batch.items()})
        for at in range(0, rows, size)
    ]
    added = objective.summarize(functools.reduce(functools.partial(jax.tree.map, np.add), every))
    wrong = [
        f"{name} ({whole[name]:.6g} and {added[name]:.6g})"
        for name in whole
        if not same(np.asarray(added[name]), np.asarray(whole[name])).all()
    ]
    return ", ".join(whole), (
        f"{listed(wrong)} differs in batches of {rows} and {size} rows: the total and weight of a "
        f"Sum must be sums over what counts, not means"
        if wrong
        else ""
    )


QUESTIONS: dict[str, Ask] = {
    "each parameter has a gradient": gradients,
    "each term of the loss moves it": terms,
    "no later token is seen": later,
    "no other document of a row is seen": documents,
    "padding counts nowhere": padding,
    "no other row is seen": rows,
    "metrics do not depend on batches": batches,
}


def same(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Which numbers are equal but for rounding."""
    if expected.dtype.kind in "biu":
        return found == expected
    finite = np.abs(expected[np.isfinite(expected)])
    within = ROUNDING * max(finite.max(initial=0.0), 1e-30)
    return np.isclose(found, expected, rtol=0, atol=within, equal_nan=True)


def equal(found: Any, expected: Any) -> bool:
    """Whether two sums are equal but for rounding."""
    return bool(
        same(found.total, expected.total).all() and same(found.weight, expected.weight).all()
    )


def check_feeds(case: Case) -> None:
    """`Refused` if rows are no examples, as where actors play."""
    if not case.experiment.objective.feeds_inputs:
        name = type(case.experiment.objective).__name__
        raise Refused(f"{name} does not call the model on the data's inputs.")


def but_mask(batch: Rows) -> list[str]:
    """The fields of a batch, but the mask."""
    return [name for name in batch if name != "mask"]


def mixed(batch: Rows, other: Rows, places: dict[str, Any]) -> Rows:
    """The batch with numbers of another at some places of fields."""
    after = {name: each.copy() for name, each in batch.items()}
    for name, where in places.items():
        after[name][where] = other[name][where]
    return after


def listed(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
