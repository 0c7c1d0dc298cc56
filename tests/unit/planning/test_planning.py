"""Plans: counts against XLA's and by hand, what is read from a compiled program, refusals."""

import dataclasses
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from support.experiments import small

from jaxbig.config.discover import load
from jaxbig.cost import remedies
from jaxbig.cost.flops import count_flops, model_flops
from jaxbig.cost.hardware import CHIPS, FRACTIONS, gpu_fraction, parse_topology, peak_of
from jaxbig.distributed.logical_axes import platform
from jaxbig.distributed.mesh import Mesh, activate
from jaxbig.errors import Failed, Refused
from jaxbig.models.language_model import Decoder
from jaxbig.objectives.next_token import NextToken
from jaxbig.planning import collectives, hlo, planner, roofline
from jaxbig.planning.xla_flags import flags
from jaxbig.program.program import make_program
from jaxbig.system.exit_codes import INTERRUPTED

Answer = tuple[Any, str, str]
DRAW = np.random.default_rng(0)


def draw(*shape: int) -> np.ndarray:
    return DRAW.standard_normal(shape).astype(np.float32)


def xla_flops(function: Any, *arguments: Any) -> float:
    """As XLA counts the program before it is optimized."""
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


def flops(function: Any, *arguments: Any) -> int:
    return count_flops(jax.make_jaxpr(function)(*arguments))


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", [(3, 5), (5, 7)]),
        ("bij,bjk->bik", [(2, 3, 5), (2, 5, 7)]),
        ("bij,kij->bk", [(2, 3, 5), (4, 3, 5)]),
    ],
)
def test_products_are_counted_as_xla_counts_them(
    equation: str, shapes: list[tuple[int, ...]]
) -> None:
    product = partial(jnp.einsum, equation)
    assert (
        flops(product, *map(jnp.zeros, shapes)) == xla_flops(product, *map(jnp.zeros, shapes)) > 0
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": "VALID"},
        {"strides": 2},
        {"kernel_size": (1, 1), "strides": 2},
        {"kernel_dilation": 2},
        {"feature_group_count": 4},
        {"kernel_size": (7, 7), "strides": 2, "padding": 3},
    ],
    ids=str,
)
def test_convolutions_and_their_gradients_are_counted_as_xla_counts_them(
    options: dict[str, Any],
) -> None:
    conv = nn.Conv(**{"features": 8, "kernel_size": (3, 3), "use_bias": False, **options})
    image = draw(2, 12, 12, 4)
    params = conv.init(jax.random.key(0), image)

    def apply(params: Any, image: Any) -> jax.Array:
        return conv.apply(params, image)  # type: ignore[return-value]

    def both(params: Any, image: Any, above: jax.Array) -> Any:  # linear: nothing but convolutions
        out, pull = jax.vjp(apply, params, image)
        return out, pull(above)

    above = apply(params, image)
    assert flops(apply, params, image) == xla_flops(apply, params, image)
    assert flops(both, params, image, above) == xla_flops(both, params, image, above)


def test_a_scan_counts_as_often_as_it_runs_and_recomputation_counts() -> None:
    once = 2 * 4 * 8 * 8

    def layer(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, None]:
        return jnp.tanh(x @ kernel), None

    def loss(kernels: jax.Array, x: jax.Array, body: Any = layer) -> jax.Array:
        return jax.lax.scan(body, x, kernels)[0].sum()

    arguments = jnp.zeros((5, 8, 8)), jnp.zeros((4, 8))
    assert flops(loss, *arguments) == 5 * once
    assert flops(jax.grad(loss), *arguments) == 5 * 3 * once
    assert flops(jax.grad(partial(loss, body=jax.checkpoint(layer))), *arguments) == 5 * 4 * once


def test_branches_maps_over_devices_and_experts_are_counted() -> None:
    kernel = jnp.zeros((8, 8))
    x = jnp.zeros((16, 8))

    def branch(x: jax.Array) -> jax.Array:
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ kernel @ kernel, lambda x: x @ kernel, x)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = PartitionSpec("data")
    mapped = jax.shard_map(lambda x: x @ kernel, mesh=mesh, in_specs=rows, out_specs=rows)
    assert flops(branch, x) == 2 * 2 * 16 * 8 * 8
    assert flops(mapped, x) == 2 * 16 * 8 * 8

    def experts(x: jax.Array, kernels: jax.Array) -> jax.Array:
        return jax.lax.ragged_dot(x, kernels, jnp.array([10, 6])).sum()

    assert flops(experts, x, jnp.zeros((2, 8, 4))) == 2 * 16 * 8 * 4
    assert flops(jax.grad(experts, argnums=(0, 1)), x, jnp.zeros((2, 8, 4))) == 3 * 2 * 16 * 8 * 4


@pytest.mark.parametrize("name", ["digits_convnet", "pytext_transformer", "imagenet_vit_s16"])
def test_a_train_step_is_counted_as_xla_counts_it_but_for_elementwise_work(name: str) -> None:
    experiment = small(name)
    if name != "digits_convnet":  # wide enough that products are nearly all
        model: Any = experiment.model
        experiment = small(name, model=model.clone(width=256, depth=2, heads=4))
    program = make_program(experiment, jax.devices()[:1])
    with program.activate():
        traced = program.train_step.trace(program.abstract, program.batch)
    ours = count_flops(traced.jaxpr)
    theirs = traced.lower().cost_analysis()["flops"]
    assert 0.8 * theirs < ours <= theirs


def test_flops_of_augmentation_are_not_the_models() -> None:
    """Crops are resized by matrix products; the model is the same whatever crops it sees."""
    experiment = small("imagenet_vit_s16", mesh=Mesh(data=1))
    found = []
    for augment in (experiment.data.augment, experiment.data.center):  # type: ignore[attr-defined]
        data = replace(experiment.data, augment=augment, mix=())
        program = make_program(replace(experiment, data=data), jax.devices()[:1])
        with program.activate():
            jaxpr = program.train_step.trace(program.abstract, program.batch).jaxpr
        found.append(model_flops(program.experiment, program, jaxpr))
        assert count_flops(jaxpr) > found[-1]
    assert found[0] == found[1]


def test_what_is_computed_twice_is_counted_once() -> None:
    experiment = small("c4_llama_7b", mesh=Mesh(fsdp=2))
    model = experiment.model
    objective = experiment.objective
    assert isinstance(model, Decoder) and isinstance(objective, NextToken)
    whole = model.clone(remat="none", mlp_chunks=0)
    plain = {"model": whole, "objective": replace(objective, chunks=0), "mesh": Mesh(data=1)}
    program = make_program(replace(experiment, **plain), jax.devices()[:1])
    with program.activate():
        jaxpr = program.train_step.trace(program.abstract, program.batch).jaxpr
    once = count_flops(jaxpr)
    assert model_flops(replace(experiment, **plain), program, jaxpr) == once
    for changes in ({}, {"accumulate": 2}, {"mesh": Mesh(data=2), "reproducible": 8}):
        other = replace(experiment, **changes)
        twice = make_program(other, jax.devices()[:2])
        assert model_flops(other, twice) == once
        with twice.activate():
            assert count_flops(twice.train_step.trace(twice.abstract, twice.batch).jaxpr) > once


def compiled(
    mesh: Mesh, function: Any, **arguments: tuple[tuple[int, ...], PartitionSpec]
) -> hlo.Module:
    """The compiled module of a function on eight CPU devices.

    Args:
      mesh: The mesh of the arguments.
      function: What is compiled.
      **arguments: The shape and the partition spec of each float32 argument.
    """
    built = mesh.build()
    at = {name: NamedSharding(built, spec) for name, (_, spec) in arguments.items()}
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=at[name])
        for name, (shape, _) in arguments.items()
    ]
    return hlo.parse(jax.jit(function).lower(*shapes).compile().as_text())


def test_a_sum_over_an_axis_of_the_mesh_is_an_all_reduce_of_its_bytes() -> None:
    mesh = Mesh(data=4, tensor=2)
    rows = PartitionSpec("data")
    split = PartitionSpec(None, "tensor")
    module = compiled(
        mesh, lambda x, k: x.T @ (x @ k @ k.T), x=((32, 16), rows), k=((16, 64), split)
    )
    sizes = dict(mesh.build().shape)
    found = collectives.table(collectives.find_collectives(module, 8), sizes)
    assert {(row["kind"], row["axes"]): (row["count"], row["bytes"]) for row in found} == {
        ("all-reduce", "tensor"): (1, 32 // 4 * 16 * 4),
        ("all-reduce", "data"): (1, 16 * 16 * 4),
    }


def test_a_ragged_exchange_counts_what_is_sent_and_not_the_room_for_the_worst_case() -> None:
    text = """HloModule m
ENTRY %main (rows: bf16[16,4], room: bf16[64,4], n: s32[4]) -> bf16[64,4] {
  %rows = bf16[16,4]{1,0} parameter(0)
  %room = bf16[64,4]{1,0} parameter(1)
  %n = s32[4]{0} parameter(2)
  %go = ((bf16[64,4]{1,0}, bf16[16,4]{1,0}, s32[4]{0}), bf16[16,4]{1,0}) \
ragged-all-to-all-start(%room, %rows, %n, %n, %n, %n), channel_id=1, replica_groups={{0,1,2,3}}
  ROOT %sent = bf16[64,4]{1,0} \
ragged-all-to-all(%rows, %room, %n, %n, %n, %n), channel_id=1, replica_groups={{0,1,2,3}}
}
"""
    found = collectives.find_collectives(hlo.parse(text), 4)
    assert [(each.kind, each.bytes) for each in found] == [("ragged-all-to-all", 16 * 4 * 2)] * 2


def test_what_a_loop_sends_counts_as_often_as_it_runs() -> None:
    def loop(x: jax.Array, kernels: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, k: (jnp.tanh(x @ k @ k.T), None), x, kernels)[0]

    split = PartitionSpec(None, None, "tensor")
    module = compiled(
        Mesh(data=1, tensor=8), loop, x=((4, 256), PartitionSpec()), kernels=((5, 256, 512), split)
    )
    (found,) = collectives.find_collectives(module, 8)
    assert (found.kind, found.times, found.bytes) == ("all-reduce", 5, 4 * 256 * 4)
    kernel = 256 * 512 // 8 * 4
    assert (
        5 * kernel < roofline.memory_traffic(module) < 5 * 5 * kernel
    )  # a layer reads its own kernel, not all five


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("replica_groups={}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("replica_groups=[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}, more", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}, more", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", [[0, 1, 4, 5], [2, 3, 6, 7]]),
        (
            "replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}, more",
            [[0, 2], [1, 3]],
        ),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(0,3,1,2) {'b'}, more", [[0, 3], [1, 2]]),
        ("replica_groups=mesh['a'=8] {'a':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
    ],
)
def test_every_way_to_write_groups_of_devices(text: str, groups: list[list[int]]) -> None:
    assert (
        collectives.parse_groups(f"channel_id=1, {text}, use_global_device_ids=true", 8) == groups
    )


def test_a_ring_takes_as_long_as_its_bytes_over_a_link() -> None:
    pod = parse_topology("v5e:4x4")
    half = CHIPS["v5e"].interconnect_bandwidth / 2
    whole = [list(range(16))]
    assert collectives.Collective("all-gather", whole, 1600, 3).seconds(pod) == pytest.approx(
        3 * 1500 / half
    )
    assert collectives.Collective("all-reduce", whole, 1600, 1).seconds(pod) == pytest.approx(
        2 * 1500 / half
    )
    two = parse_topology("v5e:4x4", 2)
    both = [list(range(32))]
    between = 1600 / 16 / 2 / CHIPS["v5e"].network_bandwidth
    assert collectives.Collective("all-gather", both, 1600, 1).seconds(two) == pytest.approx(
        1500 / half + between
    )
    times = roofline.seconds(197 * 10**12 * 16, 819 * 10**9 // 2, [], pod)
    assert times == pytest.approx({"compute": 1.0, "memory": 0.5, "interconnect": 0.0})


def test_topologies_and_chips() -> None:
    assert [parse_topology(name).devices for name in ("v5e:4x4", "v5p:4x4x8", "h100:64")] == [
        16,
        128,
        64,
    ]
    assert parse_topology("v5p:4x4x8", 2).devices == 256
    for name, chip in CHIPS.items():
        assert 1e14 < chip.peak_flops < 3e15 and 10e9 < chip.memory_bytes < 300e9, name
        assert (
            8e11 < chip.memory_bandwidth < 1e13
            and chip.interconnect_bandwidth < chip.memory_bandwidth
        ), name
        assert chip.network_bandwidth < chip.interconnect_bandwidth / 2 and chip.source, name


@pytest.mark.parametrize(
    ("kind", "chip"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5p", "v5p"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("TPU7x", "v7x"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GB200", "gb200"),
        ("NVIDIA GB300", "gb300"),
        ("AMD Instinct MI355X", "mi355x"),
    ],
)
def test_chips_are_known_by_the_names_jax_has_for_them(kind: str, chip: str) -> None:
    assert peak_of(kind) == CHIPS[chip].peak_flops


# the `bytes_limit` that jax 0.11.2 gave for these devices, by default and with
# XLA_CLIENT_MEM_FRACTION=0.9
@pytest.mark.parametrize(
    ("chip", "variable", "value", "limit"),
    [
        ("h100", "", "", 63_763_906_560),
        ("h200", "", "", 112_583_507_968),
        ("h100", "XLA_CLIENT_MEM_FRACTION", "0.9", 76_516_687_872),
        ("h100", "XLA_PYTHON_CLIENT_MEM_FRACTION", ".5", 42_509_271_040),
        ("v5e", "XLA_CLIENT_MEM_FRACTION", "0.5", int(15.75 * 2**30)),
    ],
)
def test_a_plan_counts_the_memory_that_a_run_gets(
    chip: str, variable: str, value: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in FRACTIONS:
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, value)
    assert CHIPS[chip].available_bytes == pytest.approx(limit, rel=1e-3)


@pytest.mark.parametrize("value", ["0", "75%", "-1", "nan"])
def test_a_part_of_memory_that_is_none_is_refused(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", value)
    with pytest.raises(Refused, match=f"XLA_CLIENT_MEM_FRACTION='{value}'"):
        gpu_fraction()


def test_where_a_gpu_lacks_memory_its_part_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.8")
    memory = {"peak_bytes": 3 * 2**30, "available_bytes": 2**30}
    words = planner.lacking({"memory": memory, "estimate": True})
    assert (
        "2.00 GiB too many (JAX takes 0.8 of a GPU's memory: XLA_CLIENT_MEM_FRACTION=0.9" in words
    )
    assert "JAX takes" not in planner.lacking({"memory": memory, "estimate": False})


def test_over_slices_the_remedy_that_shards_the_state_keeps_data_between_them() -> None:
    found = list(remedies.remedies(small("c4_llama_7b", mesh=Mesh(data=-1)), 8, 2))
    spread = [each for each in found if each[0].startswith("--mesh")]
    assert spread and {tuple(each[:2]) for each in spread} == {("--mesh.data=2", "--mesh.fsdp=4")}


def test_unknown_devices_have_no_peak() -> None:
    assert peak_of("cpu") is None and peak_of("TPU v99") is None


def test_the_platform_is_that_of_the_mesh() -> None:
    assert platform() == "cpu"
    with activate(Mesh().build()):
        assert jax.jit(lambda: jnp.zeros(()) if platform() == "cpu" else None)() is not None


def test_remedies_cost_little_first() -> None:
    experiment = load("c4_llama_7b")
    model: Any = experiment.model
    plain = small("c4_llama_7b", model=model.clone(remat="none"), mesh=Mesh(data=-1))
    fsdp = [
        "--mesh.data=1",
        "--mesh.fsdp=4",
        "--mesh.tensor=1",
        "--mesh.sequence=1",
        "--mesh.expert=1",
        "--mesh.stage=1",
    ]
    assert list(remedies.remedies(plain, 4)) == [
        ["--model.remat=attention"],
        ["--model.remat=dots"],
        ["--model.remat=projections"],
        ["--model.remat=full"],
        ["--model.remat=full", "--accumulate=2"],
        ["--model.remat=full", "--accumulate=4"],
        fsdp,
        [*fsdp, "--model.remat=full"],
        [*fsdp, "--model.remat=full", "--accumulate=2"],
        [*fsdp, "--model.remat=full", "--accumulate=4"],
    ]
    *_, fewest = remedies.remedies(dataclasses.replace(plain, reproducible=4), 4)
    assert fewest == [*fsdp, "--model.remat=full", "--data.batch=4"]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("plan digits_convnet", ["--topology", "v5e:4x4", "h100:64"]),
        ("plan digits_convnet --topology v9:4x4", ["v9:4x4", "v5p", "h200"]),
        ("plan digits_convnet --topology v5p:4x4", ["v5p:4x4", "3 sides"]),
        ("plan digits_convnet --topology h100:8x8", ["h100:8x8", "h100:64"]),
        ("plan digits_convnet --topology h100:0", ["h100:0"]),
        ("plan digits_convnet --topology h100:8 --slices 2", ["--slices 2"]),
        ("plan digits_convnet --topology v5e:4x4 --mesh.data 3", ["data=3", "there are 16"]),
        ("plan digits_convnet --topology h100:8 --timeout 0", ["--timeout 0"]),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_sentence(
    line: str, named: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from jaxbig.cli.main import main

    monkeypatch.setattr("sys.argv", ["jaxbig", *line.split()])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr()
    assert (stop.value.code, said.out) == (2, "")
    assert (
        len(said.err.splitlines()) == 1 and [part for part in named if part not in said.err] == []
    )


def test_without_the_compiler_a_tpu_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"pip install 'jaxbig\[tpu\]'"):
        planner.plan([], load("digits_convnet"), parse_topology("v5e:4x4"), 60, print)


def test_a_compiler_that_crashes_or_takes_too_long_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pod = parse_topology("h100:8")
    with pytest.raises(Failed, match=r"not done after 0\.1 s: allow more with --timeout"):
        planner.compile_in_child(["plan", "digits_convnet", "--topology", "h100:8"], pod, 0.1)
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(Failed, match=r"crashed \(exit code 1\)"):
        planner.compile_in_child(["plan", "digits_convnet", "--topology", "h100:8"], pod, 60)


def test_a_signal_while_the_compiler_is_started_leaves_no_child(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[subprocess.Popen[str]] = []

    def start(*arguments: Any, **named: Any) -> subprocess.Popen[str]:
        made.append(plain(*arguments, **named))
        signal.raise_signal(signal.SIGTERM)
        return made[0]

    plain = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(SystemExit) as ended:
        planner.compile_in_child(["plan", "digits_convnet"], parse_topology("h100:8"), 60)
    assert ended.value.code == INTERRUPTED and made[0].returncode == -signal.SIGKILL


def answer(done: Any) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_plan_for_gpus_is_an_estimate_from_that_many_cpu_devices(
    jaxbig: Callable[..., Any],
) -> None:
    found = answer(jaxbig("plan", "digits_convnet", "--topology", "h100:8", "--json"))
    assert (found["topology"], found["devices"], found["fits"], found["estimate"]) == (
        "h100:8",
        8,
        True,
        True,
    )
    program = make_program(load("digits_convnet"), jax.devices()[:8])
    assert found["parameters"] == sum(
        math.prod(leaf.shape) for leaf in jax.tree.leaves(program.abstract.params)
    )
    with program.activate():
        assert found["flops_per_step"] == count_flops(
            program.train_step.trace(program.abstract, program.batch).jaxpr
        )
    memory = found["memory"]
    assert (
        0
        < memory["argument_bytes"]
        < memory["peak_bytes"]
        < memory["available_bytes"]
        == CHIPS["h100"].available_bytes
    )
    sent = {
        (row["kind"], row["axes"]): row["bytes"] for row in found["collectives"]
    }  # gradients, and a few scalars
    assert 4 * found["parameters"] <= sent["all-reduce", "data"] < 4.1 * found["parameters"]
    assert {axes for _, axes in sent} == {"data"}
    assert found["step_seconds"] == max(found["bounds"].values()) and 0 < found["mfu"] < 1


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: jaxbig[tpu]"
)
def test_plans_for_tpus_are_compiled_for_real(jaxbig: Callable[..., Any]) -> None:
    big = ["plan", "pytext_llama", "--model.width", 512, "--data.length", 512]
    fitting = answer(
        jaxbig(
            *big, "--data.batch", 64, "--model.dtype", "bfloat16", "--topology", "v5e:4x4", "--json"
        )
    )
    assert (
        fitting["fits"]
        and not fitting["estimate"]
        and fitting["devices"] == 16
        and 0 < fitting["mfu"] < 1
    )
    assert {(row["kind"], row["axes"]) for row in fitting["collectives"]} == {
        ("all-reduce", "data")
    }

    found = answer(jaxbig(*big, "--data.batch", 4096, "--topology", "v5e:2x2", "--json"))
    assert not found["fits"] and found["memory"]["peak_bytes"] > found["memory"]["available_bytes"]
    assert len(found["buffers"]) >= 3 and any(
        "jaxbig/models" in each["source"] for each in found["buffers"]
    )
    assert found["proposal"]["fits"] and found["proposal"]["options"]

    refused = jaxbig("plan", "digits_convnet", "--topology", "v5e:3x5")
    assert refused.returncode == 2 and "v5e:3x5" in refused.stderr
    slices = answer(
        jaxbig("plan", "digits_convnet", "--topology", "v5e:2x2", "--slices", 2, "--json")
    )
    assert slices["devices"] == 8 and slices["fits"]
    hybrid = ["pytext_llama", "--data.batch", 64, "--mesh.data", 2, "--mesh.fsdp", 4]
    sent = answer(jaxbig("plan", *hybrid, "--topology", "v5e:2x2", "--slices", 2, "--json"))[
        "collectives"
    ]
    assert {row["axes"] for row in sent} == {"data", "fsdp"}  # data alone between the slices
    split = [
        "pytext_llama",
        "--data.batch",
        64,
        "--mesh.data",
        1,
        "--mesh.fsdp",
        8,
        "--mesh.tensor",
        2,
    ]
    sent = answer(jaxbig("plan", *split, "--topology", "v6e:4x4", "--json"))[
        "collectives"
    ]  # a side of 4 is split
    assert {row["axes"] for row in sent} >= {"fsdp", "tensor"}


@pytest.mark.parametrize("chip", ["v6e", "h100"])
def test_the_flags_of_a_chip_are_ones_that_its_compiler_knows(chip: str) -> None:
    found = flags(chip)
    program = "import jax; print(jax.jit(lambda x: x + 1)(1))"
    if chip == "v6e":
        pytest.importorskip("libtpu")
        program = (
            "from jax.experimental import topologies; "
            "print(len(topologies.get_topology_desc("
            "'v6e:2x2', 'tpu', chips_per_host_bounds=(2, 2, 1)).devices))"
        )
    quiet = {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_LOG_DIR": "disabled",
    }

    def known(value: str) -> bool:
        environment = {**os.environ, **quiet, "JAX_PLATFORMS": "cpu", found["variable"]: value}
        return (
            subprocess.run(
                [sys.executable, "-c", program], env=environment, capture_output=True
            ).returncode
            == 0
        )

    assert known(found["value"]) and not known(f"{found['value']} --xla_no_such_flag=true")


def test_flags_are_printed_to_be_exported(capsys: pytest.CaptureFixture[str]) -> None:
    from jaxbig.cli.main import run

    assert run(["flags", "v5p", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["variable"] == "LIBTPU_INIT_ARGS" and found["value"].split() == list(
        found["flags"]
    )
    with pytest.raises(Refused, match="'v9': the chips are v4, v5e"):
        run(["flags", "v9"])
