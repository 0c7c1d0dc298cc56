"""XLA compiler flags that users of each chip set, and what each is for.

None is on by default and none has been measured on such a chip: measure with `jaxbig bench`.
libtpu 0.0.42 and jaxlib 0.10.2 accept them all; other versions may not.
"""

from typing import Any

from jaxbig.cost.hardware import CHIPS
from jaxbig.errors import Refused

TPU = {
    "--xla_tpu_enable_data_parallel_all_reduce_opt=true": "reduce gradients in the backward pass",
    "--xla_tpu_data_parallel_opt_different_sized_ops=true": "also gradients of different sizes",
    "--xla_tpu_enable_async_collective_fusion=true": "overlap collectives, in one fusion",
    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true": "also the all-gathers of fsdp",
    "--xla_tpu_enable_async_collective_fusion_multiple_steps=true": "over several computations",
    "--xla_tpu_overlap_compute_collective_tc=true": "overlap collectives with matrix products",
    "--xla_enable_async_all_gather=true": "start all-gathers before the parameters are needed",
}
GPU = {
    "--xla_gpu_enable_latency_hiding_scheduler=true": "overlap collectives with compute",
    "--xla_gpu_all_gather_combine_threshold_bytes=134217728": "fewer, larger all-gathers (fsdp)",
    "--xla_gpu_reduce_scatter_combine_threshold_bytes=134217728": "also of reduce-scatters",
    "--xla_gpu_all_reduce_combine_threshold_bytes=134217728": "also of all-reduces",
}
MORE = {
    "v6e": {
        "--xla_tpu_scoped_vmem_limit_kib=98304": "larger tiles in VMEM, of which a v6e has more"
    }
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
    found = {**(TPU if CHIPS[chip].dimensions else GPU), **MORE.get(chip, {})}
    variable = "LIBTPU_INIT_ARGS" if CHIPS[chip].dimensions else "XLA_FLAGS"
    return {"chip": chip, "variable": variable, "value": " ".join(found), "flags": found}
