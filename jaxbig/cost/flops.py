"""FLOPs of a program, counted from its jaxpr: the compiler's own count sees a scan's body once."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxbig.arrays.jaxprs import inner_jaxprs, opened
from jaxbig.config.experiment import Experiment
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.base import model_class
from jaxbig.program.program import Program, make_program


def count_flops(jaxpr: Any) -> int:
    """FLOPs of matrix products and convolutions over all devices; a multiply-add counts as two.

    dot_general: 2 * (elements of the result) * (size of the contracted axes). conv_general_dilated:
    2 * (rows) * (output channels) * (input channels per group) * (pairs of an output and a kernel
    position that meet a real input, neither padding nor a dilation hole). ragged_dot: 2 * (elements
    of the left operand) * (last axis of the result). scan multiplies its body by its length,
    shard_map by its devices, a Pallas kernel by its grid (an upper bound: all blocks of causal
    attention, though the kernel skips those above the diagonal); the costliest branch of a cond
    counts; a while loop of unknown length counts once. Element-wise operations are left out.
    """
    return sum(_of(equation) for equation in opened(jaxpr).eqns)


def model_flops(experiment: Experiment, program: Program, jaxpr: Any = None) -> int:
    """FLOPs of a train step without recomputation, for MFU (Chowdhery et al., 2022, appendix B).

    Attention counts in full, causal or not.

    Args:
      jaxpr: the step's own. It is counted if it recomputes nothing; else another step is traced.
    """
    model = experiment.model
    remat, policies = model_class(model).remat_choices(model)
    settings: dict[str, Any] = {"chunks": 0, "mlp_chunks": 0, "microbatches": 0}
    if policies:
        settings[remat] = policies[0]
    # a CPU's attention kernel is the plain one already
    here = program.mesh.devices.flat[0].platform == "cpu"
    settings |= {"attention_kernel": "auto" if here else "plain"}
    parts = {"model": model, "objective": experiment.objective}
    plain = {
        name: dataclasses.replace(
            part, **{field: value for field, value in settings.items() if hasattr(part, field)}
        )  # type: ignore[type-var]
        for name, part in parts.items()
    }
    if jaxpr is not None and plain == parts and program.mesh.shape["expert"] == 1:
        return count_flops(jaxpr) - of_transform(program)
    alone = dataclasses.replace(
        experiment, **plain, mesh=Mesh(data=1), accumulate=1, reproducible=0
    )
    other = make_program(alone, program.mesh.devices.flatten()[:1].tolist())
    with other.activate():
        return count_flops(
            other.train_step.trace(other.abstract, other.train_batch).jaxpr
        ) - of_transform(other)


def of_transform(program: Program) -> int:
    """FLOPs of the data's transform in a train step, which are not the model's."""
    data = program.experiment.data
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), data.batch))
    return count_flops(
        jax.make_jaxpr(lambda batch, keys: data.transform(batch, keys, True))(program.batch, keys)
    )


def _of(equation: Any) -> int:
    name = equation.primitive.name
    params = equation.params
    shapes = [v.aval.shape for v in equation.invars if hasattr(v.aval, "shape")]
    if name == "dot_general":
        ((summed, _), _) = params["dimension_numbers"]
        return (
            2
            * math.prod(equation.outvars[0].aval.shape)
            * math.prod(shapes[0][axis] for axis in summed)
        )
    if name == "conv_general_dilated":
        return _convolution(shapes[0], shapes[1], equation.outvars[0].aval.shape, params)
    if name.startswith("ragged_dot"):
        return 2 * math.prod(shapes[0]) * equation.outvars[0].aval.shape[-1]
    inner = [count_flops(jaxpr) for jaxpr in inner_jaxprs(equation)]
    if name == "cond":
        return max(inner)
    return _times(equation) * sum(inner)


def _times(equation: Any) -> int:
    """How often an equation runs its inner jaxprs, over all devices."""
    name = equation.primitive.name
    params = equation.params
    times = 1
    if name == "scan":
        times = params["length"]
    elif name == "shard_map":
        times = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    elif name == "pallas_call":
        times = math.prod(params["grid_mapping"].grid)
    return times


def named_flops(
    jaxpr: Any, primitives: Sequence[str], *, above: str = ""
) -> Iterator[tuple[str, int]]:
    """The FLOPs of each operation of some primitives, over all devices, as `count_flops` counts.

    Args:
      jaxpr: the program.
      primitives: the beginnings of the names of the primitives.
      above: the name that the jaxpr's own names are within.

    Yields:
      The operation's name, which has those of its modules, and its FLOPs.
    """
    for equation in opened(jaxpr).eqns:
        name = f"{above}/{equation.source_info.name_stack}"
        if equation.primitive.name.startswith(tuple(primitives)):
            yield name, _of(equation)
            continue
        times = _times(equation)
        for inner in inner_jaxprs(equation):
            for found, flops in named_flops(inner, primitives, above=name):
                yield found, times * flops


def _convolution(image: Any, kernel: Any, out: Any, params: Any) -> int:
    layout = params["dimension_numbers"]
    pairs = 1
    for i, (at_in, at_kernel, at_out) in enumerate(
        zip(layout.lhs_spec[2:], layout.rhs_spec[2:], layout.out_spec[2:], strict=True)
    ):
        dilation = params["lhs_dilation"][i]
        starts = np.arange(out[at_out]) * params["window_strides"][i] - params["padding"][i][0]
        offsets = np.arange(kernel[at_kernel]) * params["rhs_dilation"][i]
        positions = starts[:, None] + offsets  # [outputs, kernel]
        inside = (positions >= 0) & (positions <= (image[at_in] - 1) * dilation)
        real = inside & (positions % dilation == 0)
        pairs *= int(real.sum())
    rows = out[layout.out_spec[0]]
    channels = out[layout.out_spec[1]]
    return 2 * rows * channels * kernel[layout.rhs_spec[1]] * pairs
