"""The mesh: its sizes, the batch split over it, and parameters placed by the rules."""

import itertools
from typing import Any, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from support.experiments import EXPERIMENTS, small

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.distributed.logical_axes import PRESETS, RULES, Preset, as_tuple, rules_without_fsdp
from jaxbig.distributed.mesh import Mesh, activate
from jaxbig.distributed.placement import AXES
from jaxbig.distributed.sharding import (
    batch_sharding,
    check_batch,
    check_length,
    device_put_batch,
    parameter_shardings,
    replicated,
)
from jaxbig.errors import Refused
from jaxbig.program.program import make_init

few = settings(max_examples=50, deadline=None)

# -- the mesh


@pytest.mark.parametrize(
    ("mesh", "devices", "sizes"),
    [
        (Mesh(), 1, (1, 1, 1, 1, 1, 1)),
        (Mesh(), 8, (8, 1, 1, 1, 1, 1)),
        (Mesh(fsdp=2), 8, (4, 2, 1, 1, 1, 1)),
        (Mesh(fsdp=2, tensor=2), 8, (2, 2, 2, 1, 1, 1)),
        (Mesh(data=2, fsdp=-1, tensor=2), 8, (2, 2, 2, 1, 1, 1)),
        (Mesh(data=1, tensor=-1), 6, (1, 1, 6, 1, 1, 1)),
        (Mesh(data=3, fsdp=4, tensor=5), 60, (3, 4, 5, 1, 1, 1)),
        (Mesh(fsdp=8), 8, (1, 8, 1, 1, 1, 1)),
        (Mesh(fsdp=256, tensor=4), 4096, (4, 256, 4, 1, 1, 1)),
        (Mesh(data=1, fsdp=2, sequence=-1), 8, (1, 2, 1, 4, 1, 1)),
        (Mesh(expert=4), 8, (2, 1, 1, 1, 4, 1)),
    ],
)
def test_a_mesh_takes_these_sizes(mesh: Mesh, devices: int, sizes: tuple[int, ...]) -> None:
    assert mesh.sizes(devices) == sizes


@pytest.mark.parametrize(
    ("mesh", "devices", "words"),
    [
        (Mesh(data=3), 8, ["data=3", "needs 3 devices", "there are 8", "JAX_NUM_CPU_DEVICES=3"]),
        (Mesh(data=2, fsdp=2), 8, ["data=2 x fsdp=2 x tensor=1", "needs 4 devices", "there are 8"]),
        (Mesh(data=4, fsdp=4), 8, ["needs 16 devices", "there are 8"]),
        (Mesh(fsdp=3), 8, ["fsdp=3", "a multiple of 3", "there are 8"]),
        (Mesh(fsdp=4, tensor=4), 8, ["a multiple of 16", "there are 8"]),
        (Mesh(fsdp=-1), 8, ["data=-1 x fsdp=-1", "one of them"]),
        (Mesh(data=0), 8, ["data=0", "1 or more"]),
        (Mesh(tensor=-2), 8, ["tensor=-2", "1 or more"]),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_with_its_numbers(
    mesh: Mesh, devices: int, words: list[str]
) -> None:
    with pytest.raises(Refused) as refused:
        mesh.sizes(devices)
    assert all(word in str(refused.value) for word in words)


@given(st.tuples(*[st.sampled_from([-1, 1, 2, 3])] * 6), st.integers(1, 12))
@few
def test_a_mesh_uses_every_device_or_is_refused(asked: tuple[int, ...], devices: int) -> None:
    possible = [
        sizes
        for sizes in itertools.product(
            [n for n in range(1, devices + 1) if devices % n == 0], repeat=6
        )
        if np.prod(sizes) == devices
        and all(a in (-1, size) for a, size in zip(asked, sizes, strict=True))
    ]
    if asked.count(-1) > 1 or not possible:
        with pytest.raises(Refused):
            Mesh(*asked).sizes(devices)
    else:
        assert [Mesh(*asked).sizes(devices)] == possible


def test_a_batch_is_split_over_data_and_fsdp_in_order() -> None:
    mesh = Mesh(data=2, fsdp=2, tensor=2).build()
    rows = np.arange(24, dtype=np.int32).reshape(8, 3)
    placed: Any = device_put_batch({"inputs": rows, "mask": np.ones(8, np.float32)}, mesh)
    assert (
        placed["inputs"].sharding.spec
        == batch_sharding(mesh).spec
        == P(("data", "fsdp", "expert", "stage"))
    )
    for shard in placed["inputs"].addressable_shards:
        # `tensor` is the innermost axis: adjacent devices have the same rows
        first = 2 * (shard.device.id // 2)
        assert np.array_equal(shard.data, rows[first : first + 2])
    assert np.array_equal(placed["inputs"], rows) and replicated(mesh).is_fully_replicated


@pytest.mark.parametrize("batch", [0, 4, 8, 12, 128])
def test_a_batch_that_divides_is_taken(batch: int) -> None:
    check_batch(batch, Mesh(data=2, fsdp=2, tensor=2).build())


@pytest.mark.parametrize("length", [12, 100])
def test_a_length_that_does_not_divide_is_refused_with_its_numbers(length: int) -> None:
    mesh = Mesh(data=1, sequence=8).build()
    check_length(16, mesh)
    with pytest.raises(Refused, match=f"--data.length {length} does not divide over sequence=8"):
        check_length(length, mesh)


@pytest.mark.parametrize("batch", [1, 2, 6, 130])
def test_a_batch_that_does_not_divide_is_refused_with_its_numbers(batch: int) -> None:
    with pytest.raises(Refused) as refused:
        check_batch(batch, Mesh(data=2, fsdp=2, tensor=2).build())
    words = [f"--data.batch {batch} ", "data=2 x fsdp=2 = 4", "a multiple of 4"]
    assert all(word in str(refused.value) for word in words)


# -- logical axes


def boxed(shape: tuple[int, ...], *names: str | None) -> Any:
    value = jax.ShapeDtypeStruct(shape, jnp.float32)
    kernel = nn.LogicallyPartitioned(value, names)  # type: ignore[arg-type]
    return {"params": {"block_0": {"up": {"kernel": kernel}}}}


@pytest.mark.parametrize(
    ("names", "spec"),
    [
        (("embed", "mlp"), P("fsdp", "tensor")),
        (("vocab", "embed"), P("tensor", "fsdp")),
        (("heads", None, "embed"), P("tensor", None, "fsdp")),
        ((None, None, None, "channels"), P(None, None, None, ("tensor", "fsdp"))),
        (("embed", None, "hidden"), P("fsdp", None, "tensor")),
        (("layers", "embed", "mlp"), P("stage", "fsdp", "tensor")),
        (("embed", "classes"), P("fsdp", None)),
        ((None,), P(None)),
    ],
)
def test_parameter_is_sharded_by_the_rules(names: tuple[str | None, ...], spec: P) -> None:
    mesh = Mesh(data=2, fsdp=2, tensor=2).build()
    found = flatten_with_paths(parameter_shardings(boxed((8,) * len(names), *names), mesh))
    assert found["params/block_0/up/kernel"].is_equivalent_to(
        jax.NamedSharding(mesh, spec), len(names)
    )


@pytest.mark.parametrize(
    ("shape", "names", "words"),
    [
        ((8, 9), ("embed", "mlp"), ["'mlp' of 9", "tensor=2"]),
        ((9, 8), ("embed", "mlp"), ["'embed' of 9", "fsdp=2"]),
        ((3, 3, 4, 6), (None, None, None, "channels"), ["'channels' of 6", "tensor=2 x fsdp=2"]),
    ],
)
def test_a_size_that_does_not_divide_is_refused_with_path_and_numbers(
    shape: Any, names: Any, words: Any
) -> None:
    with pytest.raises(Refused) as refused:
        parameter_shardings(boxed(shape, *names), Mesh(data=2, fsdp=2, tensor=2).build())
    for word in ("params/block_0/up/kernel", str(shape), *words):
        assert word in str(refused.value)


def test_gathered_is_the_table_without_fsdp() -> None:
    with activate(Mesh().build()):
        rules = rules_without_fsdp()
    assert rules_without_fsdp() == () and dict(rules) == {
        "batch": ("data", "expert", "stage"),
        "copy": ("data", "expert", "stage"),
        "length": "sequence",
        "layers": "stage",
        "embed": None,
        "channels": ("tensor",),
        "mlp": "tensor",
        "heads": "tensor",
        "vocab": "tensor",
        "hidden": "tensor",
        "classes": None,
        "experts": "expert",
        "rank": None,
    }


def test_the_table_names_only_axes_that_there_are() -> None:
    for rules in PRESETS.values():
        assert {axis for _, axes in rules for axis in as_tuple(axes)} <= set(AXES)
        assert dict(rules).keys() == dict(RULES).keys()
    assert set(AXES) == set(Mesh.__dataclass_fields__) - {"rules", "overrides"}
    assert len(dict(RULES)) == len(RULES) and set(PRESETS) == set(get_args(Preset))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_model_names_only_logical_axes_that_there_are(name: str) -> None:
    boxed = jax.eval_shape(make_init(small(name)))
    named = {
        axis
        for spec in flatten_with_paths(nn.get_partition_spec(boxed)).values()
        for axis in spec
        if axis is not None
    }
    assert named and named <= set(dict(RULES))
    for rules in PRESETS.values():
        parameter_shardings(
            boxed, Mesh(data=1).build(jax.devices()[:1]), rules
        )  # and no two want the same


def test_an_override_takes_the_place_of_a_rule() -> None:
    rules = Mesh(overrides=(("embed", "none"), ("mlp", "tensor+fsdp"))).table()
    changed = [
        ("embed", None),
        ("mlp", ("tensor", "fsdp")),
        ("mlp", ("tensor",)),
    ]  # the last where fsdp has the rows
    assert [rule for rule in rules if rule not in RULES] == changed and len(rules) == len(RULES) + 1
    with activate(mesh := Mesh(data=2, fsdp=2, tensor=2).build(), rules):
        specs = [
            nn.logical_to_mesh_axes(axes) for axes in (("embed", "mlp"), ("batch", "length", "mlp"))
        ]
        assert dict(rules_without_fsdp())["mlp"] == ("tensor",)
    assert specs == [
        P(None, ("tensor", "fsdp")),
        P(("data", "fsdp", "expert", "stage"), "sequence", ("tensor",)),
    ]
    found = flatten_with_paths(parameter_shardings(boxed((8, 8), "embed", "mlp"), mesh, rules))
    assert found["params/block_0/up/kernel"].spec == P(None, ("tensor", "fsdp"))


@pytest.mark.parametrize(
    ("mesh", "words"),
    [
        (
            Mesh(overrides=(("width", "tensor"),)),
            ["--mesh.overrides width tensor", "'width'", "embed", "mlp"],
        ),
        (Mesh(overrides=(("batch", "data"),)), ["'batch'", "vocab"]),
        (
            Mesh(overrides=(("mlp", "tensor+model"),)),
            ["'tensor+model'", "data, fsdp, tensor, sequence, expert, stage"],
        ),
        (Mesh(overrides=(("mlp", "tensor+tensor"),)), ["'tensor+tensor'", "each once"]),
        (Mesh(overrides=(("mlp", ""),)), ["''", "none"]),
        (
            Mesh(rules="zero"),  # type: ignore[arg-type]
            ["--mesh.rules 'zero'", "standard, length_over_tensor"],
        ),
    ],
    ids=str,
)
def test_rules_that_name_what_is_not_there_are_refused(mesh: Mesh, words: list[str]) -> None:
    with pytest.raises(Refused) as refused:
        mesh.table()
    assert all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize(
    ("names", "overrides", "words"),
    [
        (
            ("embed", "mlp"),
            (("mlp", "tensor+fsdp"),),
            ["(8, 12)", "'mlp' of 12", "tensor+fsdp", "embed, mlp"],
        ),
        (
            ("embed", "vocab"),
            (("embed", "tensor"),),
            ["'vocab' of 12", "split over tensor", "embed, vocab"],
        ),
        (("embed", "widths"), (), ["'widths' of 12 has no rule", "vocab"]),
        (
            ("classes", "mlp"),
            (("mlp", "data+sequence+fsdp+tensor"),),
            ["'mlp' of 12", "data=2", "fsdp=2 x tensor=2"],
        ),
    ],
)
def test_axes_that_collide_are_refused_with_path_and_numbers(
    names: Any, overrides: Any, words: list[str]
) -> None:
    mesh = Mesh(data=2, fsdp=2, tensor=2, overrides=overrides)
    with pytest.raises(Refused) as refused:
        parameter_shardings(boxed((8, 12), *names), mesh.build(), mesh.table())
    assert all(word in str(refused.value) for word in ["params/block_0/up/kernel", *words]), (
        refused.value
    )


def test_mesh_and_rules_are_entered_and_left_together() -> None:
    mesh = Mesh(data=2, fsdp=2, tensor=2).build()
    spec_of = jax.jit(lambda x: nn.with_logical_constraint(x, ("batch", "mlp")))
    with activate(mesh):
        assert spec_of(jnp.ones((8, 8))).sharding.spec == P(("data", "fsdp"), "tensor")
    assert tuple(nn.get_logical_axis_rules()) == () and jax.sharding.get_mesh().empty
