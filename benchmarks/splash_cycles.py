"""Cycles of the splash attention kernels on one TPU chip, from the compiler's final instructions.

    python benchmarks/splash_cycles.py --topology v5p:2x2x1 --length 2048 --heads 32

Needs libtpu, no TPU. Prints the bundles that each kernel has for one block of queries and keys, and
cycles of all blocks that causal attention computes, on each of the chip's two cores: of one layer,
with the forward pass twice, as full recomputation does. A bundle counts as one cycle: none waits.
"""

import argparse
import os
import re
import tempfile
from pathlib import Path
from typing import Any

DUMP = (
    "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true "
    "--xla_jf_dump_llo_pass_label_regex=.*final.* --xla_tpu_scoped_vmem_limit_kib=98304"
)
CORES = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--topology", default="v5p:2x2x1")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=None)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--block", type=int, default=1024)
    parser.add_argument("--fused", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIBTPU_INIT_ARGS"] = DUMP.format(folder)
        os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
        compile_kernels(given)
        bundles = {}
        for file in Path(folder).glob("*splash_mha_*schedule-analysis_final_bundles.txt"):
            kernel = re.search(r"splash_mha_(fwd|dkv|dq)", file.name)
            total = re.search(r"total scheduled bundles:\s+(\d+)", file.read_text())
            assert kernel and total, file
            bundles[kernel[1]] = int(total[1])
    blocks = given.length // given.block
    steps = given.rows * given.heads * blocks * (blocks + 1) // 2 // CORES
    layer = steps * (sum(bundles.values()) + bundles["fwd"])
    print(f"bundles a block: {bundles}; {steps} blocks a core; {layer:,} cycles a layer")


def compile_kernels(given: argparse.Namespace) -> None:
    import jax  # here: after the compiler's flags are set
    import jax.numpy as jnp

    from jaxbig.cost.hardware import parse_topology
    from jaxbig.distributed.mesh import Mesh, activate
    from jaxbig.models.layers.attention import attend
    from jaxbig.planning.aot_compile import devices_of

    mesh = Mesh(data=1).build(devices_of(parse_topology(given.topology))[:1])
    at = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def array(*shape: int, dtype: Any = jnp.bfloat16) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=at)

    def total(query: Any, key: Any, value: Any, segments: Any) -> jax.Array:
        y = attend(
            query,
            key,
            value,
            causal=True,
            segments=(segments, segments),
            kernel="splash",
            splash_block=given.block,
            splash_fused=given.fused,
        )
        return y.astype(jnp.float32).sum()

    keys = (given.rows, given.length, given.kv_heads or given.heads, given.width)
    query = array(given.rows, given.length, given.heads, given.width)
    segments = array(given.rows, given.length, dtype=jnp.int32)
    with activate(mesh):
        step = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))
        traced = step.trace(query, array(*keys), array(*keys), segments)
        traced.lower(lowering_platforms=("tpu",)).compile()


if __name__ == "__main__":
    main()
