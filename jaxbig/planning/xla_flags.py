"""XLA compiler flags that users of each chip set, and what each is for.

None is on by default and none has been measured on such a chip: measure with `jaxbig bench`.
libtpu 0.0.42 and 0.0.52 and jaxlib 0.10.2 compile with them all; other versions may not.
"""

import os
from typing import Any

from jaxbig.cost.hardware import CHIPS, Topology
from jaxbig.errors import Refused

REDUCE = {
    "--xla_tpu_enable_data_parallel_all_reduce_opt=true": "reduce gradients in the backward pass",
    "--xla_tpu_data_parallel_opt_different_sized_ops=true": "also gradients of different sizes",
}
FUSED = {
    **REDUCE,
    "--xla_tpu_enable_async_collective_fusion=true": "overlap collectives, in one fusion",
    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true": "also the all-gathers of fsdp",
    "--xla_tpu_enable_async_collective_fusion_multiple_steps=true": "over several computations",
    "--xla_tpu_overlap_compute_collective_tc=true": "overlap collectives with matrix products",
    "--xla_enable_async_all_gather=true": "start all-gathers before the parameters are needed",
}
"""For a chip whose matrix cores run collectives themselves."""
FUSE = "--xla_tpu_enable_async_collective_fusion_fuse_{}=false"
OFFLOAD = "--xla_tpu_enable_sparse_core_collective_offload_{}=true"
TRACE = "--xla_tpu_enable_{}_offload_tracing=true"
SPARSE_CORE = {
    FUSE.format("all_gather"): "leave all-gathers to the SparseCores",
    FUSE.format("all_reduce"): "and all-reduces",
    FUSE.format("reduce_scatter"): "and reduce-scatters",
    OFFLOAD.format("all_gather"): "gather the parameters of fsdp there, beside the products",
    OFFLOAD.format("2d_all_gather"): "also over two axes of the torus",
    OFFLOAD.format("3d_all_gather"): "also over three",
    OFFLOAD.format("reduce_scatter"): "sum the gradients of fsdp there",
    OFFLOAD.format("nd_reduce_scatter"): "also over several axes of the torus",
    OFFLOAD.format("all_reduce"): "sum the gradients of data there",
    TRACE.format("all_gather"): "show these in a profile",
    TRACE.format("reduce_scatter"): "and these",
    TRACE.format("all_reduce"): "and these",
}
"""For a chip with SparseCores, which run collectives beside its matrix cores."""
VMEM = {"--xla_tpu_scoped_vmem_limit_kib=98304": "larger tiles in VMEM, of which it has 128 MiB"}
GPU = {
    "--xla_gpu_enable_latency_hiding_scheduler=true": "overlap collectives with compute",
    "--xla_gpu_all_gather_combine_threshold_bytes=134217728": "fewer, larger all-gathers (fsdp)",
    "--xla_gpu_reduce_scatter_combine_threshold_bytes=134217728": "also of reduce-scatters",
    "--xla_gpu_all_reduce_combine_threshold_bytes=134217728": "also of all-reduces",
}
TPU = {
    "v4": REDUCE,
    "v5e": FUSED,
    "v5p": {**SPARSE_CORE, **VMEM},
    "v6e": {**SPARSE_CORE, **VMEM},
    "v7x": SPARSE_CORE,
}


def flags(chip: str) -> dict[str, Any]:
    """The flags of a chip.

    Returns:
      `chip`, `variable` and `value` to export, and `flags`: what each is for.

    Raises:
      Refused: the chip is unknown.
    """
    if chip not in CHIPS:
        raise Refused(f"no flags for {chip!r}: the chips are {', '.join(CHIPS)}.")
    found = TPU.get(chip, GPU)
    variable = "LIBTPU_INIT_ARGS" if chip in TPU else "XLA_FLAGS"
    return {"chip": chip, "variable": variable, "value": " ".join(found), "flags": found}


def set_flags(topology: Topology) -> None:
    """Sets the flags of a TPU's compiler for this process and its children, before it is loaded.

    Raises:
      Refused: the topology is of GPUs.
    """
    if not topology.is_tpu:
        raise Refused(
            f"--flags: {topology.name} is planned by the CPU's compiler, which takes none of a "
            f"GPU's: leave it out."
        )
    found = flags(topology.kind)
    given = os.environ.get(found["variable"], "")
    if found["value"] not in given:
        os.environ[found["variable"]] = f"{found['value']} {given}".strip()
