"""Each chip's flags compile a small sharded step with the TPU compiler that is installed."""

import importlib.util
import os
import subprocess
import sys

import pytest

from jaxbig.cost.hardware import CHIPS, parse_topology
from jaxbig.errors import Refused
from jaxbig.planning.xla_flags import TPU, flags, set_flags

TOPOLOGIES = {"v4": "4x4x4", "v5e": "4x4", "v5p": "4x4x4", "v6e": "4x4", "v7x": "4x4x4"}
PROGRAM = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxbig.cost.hardware import parse_topology
from jaxbig.planning.aot_compile import devices_of

mesh = Mesh(np.array(devices_of(parse_topology(sys.argv[1]))), ("fsdp",))
rows = NamedSharding(mesh, PartitionSpec("fsdp"))
over_layers = NamedSharding(mesh, PartitionSpec(None, "fsdp"))

def layer(x, kernel):
    whole = jax.lax.with_sharding_constraint(kernel, NamedSharding(mesh, PartitionSpec()))
    return jax.lax.with_sharding_constraint(jnp.tanh(x @ whole), rows), None

def loss(kernels, x):
    return jax.lax.scan(jax.checkpoint(layer), x, kernels)[0].astype(jnp.float32).sum()

kernels = jax.ShapeDtypeStruct((4, 2048, 2048), jnp.bfloat16, sharding=over_layers)
x = jax.ShapeDtypeStruct((64 * mesh.size, 2048), jnp.bfloat16, sharding=rows)
step = jax.jit(jax.value_and_grad(loss), out_shardings=(None, over_layers))
compiled = step.trace(kernels, x).lower(lowering_platforms=("tpu",)).compile()
assert any(kind in compiled.as_text() for kind in ("all-gather", "all-reduce"))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: jaxbig[tpu]"
)
@pytest.mark.parametrize("chip", TOPOLOGIES)
def test_the_flags_of_a_chip_compile_a_step_that_gathers_its_parameters(chip: str) -> None:
    quiet = {"TPU_LOG_DIR": "disabled", "TPU_MIN_LOG_LEVEL": "3", "TPU_STDERR_LOG_LEVEL": "3"}
    alone = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, f"{chip}:{TOPOLOGIES[chip]}"],
        env={**os.environ, **quiet, **alone, "LIBTPU_INIT_ARGS": flags(chip)["value"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_tpu_has_flags_and_a_topology_to_try_them_on() -> None:
    tpus = {name for name, chip in CHIPS.items() if chip.dimensions}
    assert tpus == set(TPU) == set(TOPOLOGIES)
    assert all(flags(chip)["flags"] for chip in CHIPS)


def test_flags_are_set_once_and_before_what_the_user_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--own=1")
    for _ in range(2):
        set_flags(parse_topology("v5p:2x2x1"))
    assert os.environ["LIBTPU_INIT_ARGS"] == f"{flags('v5p')['value']} --own=1"
    with pytest.raises(Refused, match="h100:8 is planned by the CPU's compiler"):
        set_flags(parse_topology("h100:8"))
