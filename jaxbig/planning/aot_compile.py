"""Compiles the train step for chips that are not attached, and measures the compiled program."""

import dataclasses
import re
import time
from collections.abc import Sequence
from typing import Any

import jax

from jaxbig.config.experiment import Experiment
from jaxbig.cost.flops import count_flops, model_flops
from jaxbig.cost.hardware import GiB, Topology, gpu_fraction
from jaxbig.cost.memory import bytes_per_device, peak_bytes
from jaxbig.distributed.placement import arrange_over_hosts
from jaxbig.errors import Failed, Refused
from jaxbig.planning import collectives, cycles, hlo, roofline
from jaxbig.planning.buffers import arguments, largest, largest_traced
from jaxbig.program.program import all_parameters, make_program


def devices_of(topology: Topology) -> Sequence[Any]:
    """Devices of a topology to compile for: TPU descriptions, or for GPUs as many CPU devices.

    Raises:
      Refused: libtpu does not know the topology.
    """
    if not topology.is_tpu:
        return jax.devices("cpu")
    from jax.experimental import topologies  # here: needed for TPUs only

    # a host has 2 x 2 chips if the topology has; megacore makes both cores of a chip one device
    sides = (*topology.shape, 1)[:3]
    options: dict[str, Any] = {"chips_per_host_bounds": (min(2, sides[0]), min(2, sides[1]), 1)}
    if any(topology.wrap):  # else the compiler gathers parameters by all-reduces of zeros
        options["wrap"] = topology.wrap
    if topology.kind == "v4":
        options["chip_config_name"] = "megacore"
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name.replace("v7x", "tpu7x"), **options
        )
    except jax.errors.JaxRuntimeError as error:
        raise Refused(
            f"--topology {topology.name!r} is unknown to libtpu: {_sentence(error)}."
        ) from None
    return described.devices


def measure(experiment: Experiment, topology: Topology) -> dict[str, Any]:
    """The plan of a train step; if it does not fit, what is known without compiling."""
    program = make_program(experiment, devices_of(topology))
    host = bytes_per_device(program).get("host", 0)
    mesh = dict(program.mesh.shape)
    chip = topology.chip
    flops_of_model = model_flops(experiment, program)
    began = time.perf_counter()
    with program.activate():
        traced = program.train_step.trace(program.abstract, program.train_batch)
        lowered = traced.lower(lowering_platforms=("tpu",) if topology.is_tpu else None)
        compiled = None
        used = 0
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise Failed(
                    f"the compiler for {topology.name} failed: {_sentence(error)}."
                ) from None
            used = _used(str(error))
    flops = count_flops(traced.jaxpr)
    plan: dict[str, Any] = {
        "topology": topology.name,
        "slices": topology.slices,
        "devices": topology.devices,
        "mesh": mesh,
        "parameters": sum(leaf.size for leaf in all_parameters(program).values()),
        "compile_seconds": time.perf_counter() - began,
        "memory": {
            "argument_bytes": sum(each["bytes"] for each in arguments(program)),
            "available_bytes": chip.available_bytes,
            **({"host_bytes": host} if host else {}),
        },
        "estimate": not topology.is_tpu,
        **({} if topology.is_tpu else {"memory_fraction": gpu_fraction()}),
        "flops_per_step": flops,
        "model_flops_per_step": flops_of_model,
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
            "time": None,
            "step_seconds": None,
            "mfu": None,
        }
    memory = compiled.memory_analysis()
    module = hlo.parse(compiled.as_text())
    given = memory.argument_size_in_bytes
    peak = peak_bytes(compiled)
    if topology.is_tpu:
        peak = max(peak, memory.peak_memory_in_bytes)
    else:  # a CPU's compiler counts what is in host memory
        given -= host
        peak -= host
    plan["memory"] |= {
        "argument_bytes": given,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": peak,
    }
    sent = collectives.find_collectives(module, topology.devices, topology.island)
    placed = [each.renumbered(layout(topology, mesh)) for each in sent]
    bounds = roofline.seconds(flops, roofline.memory_traffic(module), placed, topology)
    seconds = max(bounds.values())
    time_of_parts = None
    if topology.is_tpu:
        kernels = cycles.kernel_seconds(traced.jaxpr, topology)
        time_of_parts = cycles.timeline(module, topology, kernels)
    if time_of_parts is not None:
        seconds = time_of_parts.seconds
    return plan | {
        "fits": peak <= chip.available_bytes,
        "buffers": largest(module, program),
        "collectives": collectives.table(sent, mesh),
        "bounds": bounds,
        "time": None if time_of_parts is None else dataclasses.asdict(time_of_parts),
        "step_seconds": seconds,
        "mfu": flops_of_model / (seconds * topology.devices * chip.peak_flops),
    }


def layout(topology: Topology, mesh: dict[str, int]) -> list[int]:
    """The chip at each position of the mesh, in mesh order, as a real run arranges them.

    Needed for GPUs, which are compiled for as CPU devices of a single host.
    """
    if topology.is_tpu:  # slices are in the order of `data` already
        return list(range(topology.devices))
    hosts = [
        range(first, min(first + topology.island, topology.devices))
        for first in range(0, topology.devices, topology.island)
    ]
    return arrange_over_hosts(tuple(mesh.values()), hosts).reshape(-1).tolist()


def _used(message: str) -> int:
    """Bytes of temporaries from the compiler's out-of-memory error; 0 if it does not report
    them."""
    found = re.search(r"temporaries \(([\d.]+)([KMGT])\)", message) or re.search(
        r"Used ([\d.]+)([KMGT])", message
    )
    return int(float(found[1]) * GiB * 1024.0 ** ("KMGT".index(found[2]) - 2)) if found else 0


def _sentence(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")[:300]
