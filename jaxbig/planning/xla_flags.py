"""Compiler flags that users of each chip set, and what each is for: `jaxbig flags v5p` prints the line to export.

None is on by default, and none has been measured here, where there is no such chip: a gain is the reader's to measure
(`jaxbig bench`). What is known is that libtpu 0.0.42 and jaxlib 0.10.2 accept them all; others may not.
"""

from typing import Any

from jaxbig.cost.hardware import CHIPS
from jaxbig.errors import Refused

TPU = {
    "--xla_tpu_enable_data_parallel_all_reduce_opt=true": "adds up gradients over data during the backward pass",
    "--xla_tpu_data_parallel_opt_different_sized_ops=true": "also gradients of different sizes at once",
    "--xla_tpu_enable_async_collective_fusion=true": "sends while it computes, in one fused program",
    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true": "the same for the parameters that fsdp gathers",
    "--xla_tpu_enable_async_collective_fusion_multiple_steps=true": "and spread over several computations",
    "--xla_tpu_overlap_compute_collective_tc=true": "sends while the matrix unit computes",
    "--xla_enable_async_all_gather=true": "begins to gather before the parameters are needed",
}
GPU = {
    "--xla_gpu_enable_latency_hiding_scheduler=true": "orders the program so that it sends while it computes",
    "--xla_gpu_all_gather_combine_threshold_bytes=134217728": "gathers the parameters of fsdp in fewer, larger pieces",
    "--xla_gpu_reduce_scatter_combine_threshold_bytes=134217728": "adds up the gradients of fsdp so",
    "--xla_gpu_all_reduce_combine_threshold_bytes=134217728": "adds up the gradients of data so",
}
MORE = {
    "v6e": {
        "--xla_tpu_scoped_vmem_limit_kib=98304": "larger tiles in fast memory, of which a v6e has more"
    }
}


def flags(chip: str) -> dict[str, Any]:
    """{`variable`, `value`, `flags`: what each is for}; `Refused` names the chips there are."""
    if chip not in CHIPS:
        raise Refused(f"no flags for {chip!r}: the chips are {', '.join(CHIPS)}.")
    found = {**(TPU if CHIPS[chip].dimensions else GPU), **MORE.get(chip, {})}
    variable = "LIBTPU_INIT_ARGS" if CHIPS[chip].dimensions else "XLA_FLAGS"
    return {"chip": chip, "variable": variable, "value": " ".join(found), "flags": found}
