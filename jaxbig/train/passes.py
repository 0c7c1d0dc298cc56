"""Passes of a model over data, each example once: the metrics, the outputs or the features."""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.config.evaluator import Evaluator
from jaxbig.config.experiment import Experiment
from jaxbig.data.core.dataset import Data, Source, open_split
from jaxbig.data.pipeline.loader import eval_batches
from jaxbig.distributed.multihost import assert_same_on_all, is_process_zero, on_process_zero
from jaxbig.distributed.sharding import batch_sharding, device_put_batch, local_rows, replicated
from jaxbig.errors import Failed, Refused
from jaxbig.objectives.base import Batch, Sums
from jaxbig.objectives.metric import Collector, Kept, Metric
from jaxbig.program.program import Program, make_features, make_program
from jaxbig.program.state import TrainState
from jaxbig.tracking.figures import optional
from jaxbig.train.batch_loader import read_ahead_limit

Values = dict[str, float]
"""Metrics by name."""


class StopRequestedError(Exception):
    """The run was asked to save and stop, in the middle of an evaluation."""


def evaluate(
    program: Program,
    state: TrainState,
    source: Source,
    *,
    heartbeat: Callable[[], None] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
    collectors: Collection[Collector] = (),
) -> dict[str, float] | None:
    """The objective's metrics over every example of a source, each exactly once, and those over all
    outputs that the experiment has.

    Args:
      program: whose `eval_step` is called.
      state: parameters and variables; the variables that are carried restart from it.
      source: examples.
      heartbeat: called before each batch.
      should_stop: asked before each batch.
      collectors: get the outputs of each batch too.

    Returns:
      The metrics, of sums that are added in float64; None if asked to stop.
    """
    experiment = program.experiment
    over_outputs = [Collector(metric) for metric in experiment.metrics]
    collectors = (*over_outputs, *collectors)
    step = program.eval_step_with_outputs if collectors else program.eval_step
    sums: Sums = {}
    try:
        for made, *seen in step_over(
            program, step, state, source=source, heartbeat=heartbeat, should_stop=should_stop
        ):
            for name, each in made.items():
                each = jax.tree.map(np.float64, each)
                sums[name] = jax.tree.map(np.add, sums[name], each) if name in sums else each
            for collector in collectors:
                collector.add(*seen)
    except StopRequestedError:
        return None
    means = experiment.objective.summarize(sums)
    for collector in over_outputs:
        means |= collector.result()
    return means


def step_over(
    program: Program,
    step: Callable[..., Any],
    state: TrainState,
    *,
    source: Source,
    heartbeat: Callable[[], None],
    should_stop: Callable[[], bool],
) -> Iterator[tuple[Any, ...]]:
    """Calls a compiled step on each batch of a source; each result is read while the devices have
    the next batch.

    Args:
      program: gives the batches' size and their number.
      step: `(state, batch) -> (result, variables, *more)`.
      state: parameters and variables; those that are carried restart from it.
      source: examples.
      heartbeat: called before each batch.
      should_stop: asked before each batch.

    Yields:
      `(result, *more)` of each batch, on the host.

    Raises:
      StopRequestedError: asked to stop.
    """
    experiment = program.experiment
    state = program.merged(state)
    batches = eval_batches(
        source,
        batch=experiment.data.batch,
        rows=local_rows(program.mesh, experiment.data.batch),
        threads=max(experiment.reader_threads, experiment.workers),
        read_ahead=read_ahead_limit(experiment),
        max_batches=experiment.evaluate_batches,
    )
    before: tuple[Any, ...] | None = None
    for rows in itertools.chain(batches, [None]):
        heartbeat()
        if should_stop():
            raise StopRequestedError
        now = None
        if rows is not None:
            batch = device_put_batch(rows, program.mesh)
            result, variables, *more = step(state, batch)
            state = state.replace(variables=variables)  # type: ignore[attr-defined]
            now = (result, *more)
        if before is not None:
            yield jax.device_get(before)
        before = now


class Evaluation:
    """What evaluators use: the data of a run, and what can be computed on it.

    It is made once, so what is opened or compiled is used by all evaluations of a run.

    Attributes:
      program: the compiled functions of the run.
      experiment: the run's.
      folder: of the run that trains, where an evaluator may put pictures; None: none is written.
    """

    def __init__(
        self,
        program: Program,
        *,
        heartbeat: Callable[[], None] = lambda: None,
        should_stop: Callable[[], bool] = lambda: False,
        folder: Path | None = None,
    ):
        """
        Args:
          program: of the run, whose data is prepared.
          heartbeat: called before each batch.
          should_stop: asked before each batch.
          folder: where pictures may be written, if anywhere.
        """
        self.program = program
        self.folder = folder
        self.experiment: Experiment = program.experiment
        self._heartbeat = heartbeat
        self._should_stop = should_stop
        self._sources: dict[str, Source] = {}
        self._on_others: dict[int, tuple[Data, Self]] = {}
        self._made: dict[str, Any] = {}
        self._features: Any = None

    def source(self, split: str) -> Source:
        """The examples of a split of the data.

        Raises:
          Refused: the data has no such split.
        """
        if split not in self._sources:
            self._sources[split] = open_split(self.experiment.data, split)
        return self._sources[split]

    def on(self, data: Data) -> Self:
        """The same on other data, which is prepared if it is not.

        The other data gets what the run's data has learned, such as a tokenizer or the mean and
        standard deviation of columns.

        Raises:
          Refused: the model does not fit that data.
        """
        if id(data) not in self._on_others:
            program = self._program_on(with_learned(data, self.experiment.data))
            self._on_others[id(data)] = (data, self.of(program))
        return self._on_others[id(data)][1]

    def of(self, program: Program) -> Self:
        """The same of another program, such as another run's."""
        return type(self)(program, heartbeat=self._heartbeat, should_stop=self._should_stop)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What an evaluator makes once for all evaluations of a run, by a name of its own."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _program_on(self, data: Data) -> Program:
        alone = self.experiment.replace(data=data, evaluators=(), callbacks=())
        with self.program.activate():
            program = make_program(alone, list(self.program.mesh.devices.flat))
        here = shapes(self.program.plain.params)
        there = shapes(program.plain.params)
        for path in here | there:
            if here.get(path) != there.get(path):
                sizes = [list(each.batch["inputs"].shape[1:]) for each in (program, self.program)]
                raise Refused(
                    f"an example of {type(data).__name__} is {sizes[0]}, and of this run's data "
                    f"{sizes[1]}: the model's {path} would be {there.get(path)}, and is "
                    f"{here.get(path)}."
                )
        identity = on_process_zero(data.prepare)
        if not is_process_zero():
            identity = data.prepare()
        assert_same_on_all({"data": identity})
        on_process_zero(data.check)
        return program

    def pause(self) -> None:
        """To be called now and then by an evaluator that computes for long by itself.

        Raises:
          StopRequestedError: the run is asked to save and stop; let it pass.
        """
        self._heartbeat()
        if self._should_stop():
            raise StopRequestedError

    def on_process_zero(self, act: Callable[[], Any]) -> Any:
        """Calls a function on process 0 alone; its result, plain JSON, on every process."""
        return on_process_zero(act)

    def metrics(
        self, state: TrainState, source: Source, *, batches: int | None = None
    ) -> dict[str, float]:
        """The metrics of the run's objective and of its `metrics` over the examples of a source.

        Args:
          state: what is evaluated.
          source: the examples.
          batches: only the first ones; None: every example once.
        """
        found = evaluate(
            limited(self.program, batches),
            state,
            source,
            heartbeat=self._heartbeat,
            should_stop=self._should_stop,
        )
        if found is None:
            raise StopRequestedError
        return found

    def outputs(self, state: TrainState, source: Source) -> Kept:
        """What the model returns for each example of a source, with its target.

        Returns:
          `outputs` [N, ...] and `targets` [N, ...], on every process.
        """
        collector = Collector(KeepAll())
        plain = self.program.experiment.replace(metrics=())
        found = evaluate(
            limited(dataclasses.replace(self.program, experiment=plain), None),
            state,
            source,
            heartbeat=self._heartbeat,
            should_stop=self._should_stop,
            collectors=[collector],
        )
        if found is None:
            raise StopRequestedError
        return collector.joined()

    def predictions(self, state: TrainState, source: Source) -> Kept:
        """What the objective predicts for each example of a source, [N, ...] by name, on every
        process."""
        real_rows = jax.jit(
            lambda mask: jnp.any(mask.reshape(len(mask), -1) > 0, axis=1),
            out_shardings=replicated(self.program.mesh),
        )

        def step(state: TrainState, batch: Batch) -> tuple[Any, ...]:
            return *self.program.predict(state, batch, 1), real_rows(batch["mask"])

        parts = step_over(
            limited(self.program, None),
            step,
            state,
            source=source,
            heartbeat=self._heartbeat,
            should_stop=self._should_stop,
        )
        kept = [{name: field[real] for name, field in found.items()} for found, real in parts]
        return {name: np.concatenate([part[name] for part in kept]) for name in kept[0]}

    def prediction_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of what the objective predicts for a batch; nothing is compiled."""
        program = self.program

        def predict(state: TrainState, batch: Batch) -> Any:
            return program.predict(state, batch, 1)[0]

        with program.activate():
            return jax.eval_shape(predict, program.plain, program.batch)

    def picture(self, name: str, write: Callable[[Path], None]) -> None:
        """Has process 0 write a picture to the run's folder, if there is one; the log says if it
        cannot."""
        if self.folder is not None:
            file = self.folder / name
            with optional(f"no picture {file}"):
                on_process_zero(lambda: write(file))

    def features(self, state: TrainState, source: Source) -> Kept:
        """The model's features of each example of a source, with its target, without dropout.

        Returns:
          `features` [N, D] float32 and `targets` [N, ...], on every process.
        """
        parts = step_over(
            limited(self.program, None),
            self._features_step(),
            state,
            source=source,
            heartbeat=self._heartbeat,
            should_stop=self._should_stop,
        )
        kept: list[Kept] = []
        for (fields,) in parts:
            real = np.any(fields.pop("mask").reshape(len(fields["features"]), -1) > 0, axis=1)
            kept.append({name: field[real] for name, field in fields.items()})
        return {name: np.concatenate([each[name] for each in kept]) for name in kept[0]}

    def feature_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of `features`, `targets` and `mask` of a batch; nothing is compiled.

        Raises:
          Refused: the model has no features.
        """
        program = self.program
        with program.activate():
            return jax.eval_shape(self._features_step(), program.plain, program.batch)[0]

    def _features_step(self) -> Any:
        if self._features is None:
            program = self.program
            rows = batch_sharding(program.mesh)
            shardings = jax.tree.map(lambda each: each.sharding, program.plain)
            whole = replicated(program.mesh)
            self._features = jax.jit(
                make_features(self.experiment),
                in_shardings=(shardings, dict.fromkeys(program.batch, rows)),
                out_shardings=(whole, shardings.variables),
            )
        return self._features


def check_evaluators(evaluation: Evaluation) -> None:
    """Raises `Refused` for an evaluator that does not fit the run; its data is opened."""
    for each in evaluation.experiment.evaluators:
        try:
            each.evaluator.check(evaluation)
        except Refused as error:
            raise Refused(f"evaluators: {each.evaluator.split}: {error}") from None


def run_evaluator(evaluator: Evaluator, evaluation: Evaluation, state: TrainState) -> Values:
    """The metrics of an evaluator; those of process 0, which writes them.

    Raises:
      StopRequestedError: the run is asked to stop.
      Failed: it gives something else than numbers by name.
    """
    values: Any = evaluator.run(evaluation, evaluation.program.merged(state))
    try:
        return {name: float(value) for name, value in values.items()}
    except (AttributeError, TypeError, ValueError):
        raise Failed(
            f"{type(evaluator).__name__}.run must give numbers by name, as {{'accuracy': 0.9}}; it "
            f"gave {values!r}."
        ) from None


class KeepAll(Metric):
    """Keeps outputs and targets."""

    def result(self, kept: Kept) -> dict[str, float]:
        return {}


class Subset:
    """Some of the examples of a source."""

    def __init__(self, source: Source, indices: np.ndarray):
        """
        Args:
          source: all examples.
          indices: of those that are taken, [N].
        """
        self._source = source
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at these places of the subset, [B, ...] by field."""
        return self._source.rows(self._indices[indices])


def evenly(source: Source, most: int) -> Source:
    """A source, or at most this many of its examples, evenly spread."""
    count = len(source)
    return source if count <= most else Subset(source, np.arange(most) * count // most)


def limited(program: Program, batches: int | None) -> Program:
    """A program whose evaluations have this number of batches; None: all."""
    experiment = program.experiment.replace(evaluate_batches=batches)
    return dataclasses.replace(program, experiment=experiment)


def with_learned(data: Data, other: Data) -> Data:
    """A copy of data that knows what other data has learned, such as a tokenizer."""
    with TemporaryDirectory() as folder:
        for name, content in other.kept().items():
            (Path(folder) / name).write_bytes(content)
        return data.with_kept(Path(folder))


def shapes(params: Any) -> dict[str, str]:
    """The shape of each parameter in words, by path."""
    return {
        path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in flatten_with_paths(params).items()
    }
