"""What a plan's child process does: compile the real train step for chips that are not here, and read what came out."""

import re
import time
from collections.abc import Sequence
from typing import Any

import jax

from jaxbig.config.experiment import Experiment
from jaxbig.cost.flops import count_flops, model_flops
from jaxbig.cost.hardware import SERVER, GiB, Topology, gpu_fraction
from jaxbig.cost.memory import bytes_per_device
from jaxbig.distributed.placement import arrange_over_hosts
from jaxbig.errors import Failed, Refused
from jaxbig.planning import collectives, hlo, roofline
from jaxbig.planning.buffers import arguments, largest, largest_traced
from jaxbig.program.program import make_program


def devices_of(topology: Topology) -> Sequence[Any]:
    """The topology's devices, for compiling alone; for GPUs as many of the CPU. `Refused` if libtpu knows none such."""
    if not topology.is_tpu:
        return jax.devices("cpu")
    from jax.experimental import topologies  # here: it is needed for TPUs alone

    # a host's chips are 2 x 2 where there are so many; megacore makes both cores of a chip one device
    sides = (*topology.shape, 1)[:3]
    options: dict[str, Any] = {"chips_per_host_bounds": (min(2, sides[0]), min(2, sides[1]), 1)}
    if topology.kind == "v4":
        options["chip_config_name"] = "megacore"
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, **options
        )
    except jax.errors.JaxRuntimeError as error:
        raise Refused(
            f"--topology {topology.name!r} is none that libtpu knows: {_sentence(error)}."
        ) from None
    return described.devices


def measure(experiment: Experiment, topology: Topology) -> dict[str, Any]:
    """All that a plan says; where the program does not fit, what is known of it."""
    program = make_program(experiment, devices_of(topology))
    host = bytes_per_device(program).get("host", 0)
    mesh, chip, of_model = dict(program.mesh.shape), topology.chip, model_flops(experiment, program)
    began = time.perf_counter()
    with program.activate():
        traced = program.train_step.trace(program.abstract, program.batch)
        lowered = traced.lower(lowering_platforms=("tpu",) if topology.is_tpu else None)
        compiled, used = None, 0
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise Failed(
                    f"the compiler for {topology.name} failed: {_sentence(error)}."
                ) from None
            used = _used(str(error))
    plan: dict[str, Any] = {
        "topology": topology.name,
        "slices": topology.slices,
        "devices": topology.devices,
        "mesh": mesh,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(program.abstract.params)),
        "compile_seconds": time.perf_counter() - began,
        "memory": {
            "argument_bytes": sum(each["bytes"] for each in arguments(program)),
            "available_bytes": chip.available_bytes,
            **({"host_bytes": host} if host else {}),
        },
        "estimate": not topology.is_tpu,
        **({} if topology.is_tpu else {"memory_fraction": gpu_fraction()}),
        "flops_per_step": (flops := count_flops(traced.jaxpr)),
        "model_flops_per_step": of_model,
    }
    if compiled is None:
        plan["memory"] |= {
            "temporary_bytes": used,
            "peak_bytes": used + plan["memory"]["argument_bytes"],
        }
        buffers = largest_traced(traced.jaxpr, program)
        return plan | {
            "fits": False,
            "buffers": buffers,
            "collectives": None,
            "step_seconds": None,
            "mfu": None,
        }
    memory, module = compiled.memory_analysis(), hlo.parse(compiled.as_text())
    outputs = (
        memory.output_size_in_bytes - memory.alias_size_in_bytes
    )  # the donated state is counted once
    given = memory.argument_size_in_bytes - (
        0 if topology.is_tpu else host
    )  # a CPU's compiler counts it in
    whole = given + memory.temp_size_in_bytes + outputs
    peak = max(whole, memory.peak_memory_in_bytes) if topology.is_tpu else whole
    plan["memory"] |= {
        "argument_bytes": given,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": peak,
    }
    sent = collectives.find_collectives(module, topology.devices, topology.island)
    placed = [each.renumbered(layout(topology, mesh)) for each in sent]
    bounds = roofline.seconds(flops, roofline.memory_traffic(module), placed, topology)
    seconds = max(bounds.values())
    return plan | {
        "fits": peak <= chip.available_bytes,
        "buffers": largest(module, program),
        "collectives": collectives.table(sent, mesh),
        "bounds": bounds,
        "step_seconds": seconds,
        "mfu": of_model / (seconds * topology.devices * chip.peak_flops),
    }


def layout(topology: Topology, mesh: dict[str, int]) -> list[int]:
    """Which chip of the topology a run puts at each place of the mesh, in its order; islands are chips that follow each
    other. What is compiled here for GPUs runs on CPU devices, which are one host."""
    if topology.is_tpu:  # slices are in the order of `data` already
        return list(range(topology.devices))
    hosts = [
        range(first, min(first + SERVER, topology.devices))
        for first in range(0, topology.devices, SERVER)
    ]
    return arrange_over_hosts(tuple(mesh.values()), hosts).reshape(-1).tolist()


def _used(message: str) -> int:
    """Bytes that the program needs besides its arguments, from the compiler's refusal; 0 if it does not say."""
    found = re.search(r"temporaries \(([\d.]+)([KMGT])\)", message) or re.search(
        r"Used ([\d.]+)([KMGT])", message
    )
    return int(float(found[1]) * GiB * 1024.0 ** ("KMGT".index(found[2]) - 2)) if found else 0


def _sentence(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")[:300]
