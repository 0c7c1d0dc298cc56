"""Attention over a split length, by a ring or by all-to-alls, is the plain kernel over every mesh,
gradients too, in memory that grows with a piece alone, and sends the bytes that theory says."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxbig.distributed.mesh import Mesh, activate
from jaxbig.errors import Refused
from jaxbig.models.layers import ring_attention
from jaxbig.models.layers.attention import Attention, attend
from jaxbig.planning import collectives, hlo

LENGTH = 48
HEADS = 8
PACKED = jnp.array(
    [[1] * 20 + [2] * 9 + [3] * 11 + [0] * 8, [1] * 47 + [0]] * 2
)  # documents, then padding
MESHES = [Mesh(data=1, sequence=8), Mesh(data=2, tensor=2, sequence=2)]
KERNELS = ["ring", "zigzag", "ulysses"]
CASES = {
    "causal": {"causal": True},
    "causal packed": {"causal": True, "segments": (PACKED, PACKED)},
    "causal window": {"causal": True, "window": 10},
    "window packed": {"causal": False, "window": 7, "segments": (PACKED, PACKED)},
    "all": {"causal": False},
    "causal capped": {"causal": True, "scale": 1.5, "cap": 2.0},
}

QUICK = {
    "ring": [(case, 2) for case in CASES] + [("causal packed", 1), ("all", 4)],
    "zigzag": [("causal packed", 2)],
    "ulysses": [("causal packed", 1)],
}
COMBINATIONS = [
    pytest.param(
        kernel,
        *case,
        mesh,
        marks=() if mesh == MESHES[-1] and case in QUICK[kernel] else pytest.mark.slow,
    )
    for kernel in KERNELS
    for case in QUICK["ring"]
    for mesh in MESHES
]


def draw(
    groups: int, length: int = LENGTH, keys: int | None = None, *, heads: int = HEADS
) -> list[np.ndarray]:
    """Queries, keys, values."""
    normal = np.random.default_rng(0).standard_normal
    shapes = [(4, length, heads, 8), *[(4, keys or length, groups, 8)] * 2]
    return [normal(shape).astype(np.float32) for shape in shapes]


def attended(kernel: str, arrays: list[np.ndarray], **options: Any) -> dict[str, np.ndarray]:
    """What attention gives, and a gradient of it by query, key and value."""

    def total(*arrays: Any) -> Any:
        y = attend(*arrays, **options, kernel=kernel)
        return jnp.sum(jnp.sin(y) * jnp.arange(y.size).reshape(y.shape)) / y.size, y

    (_, y), gradient = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(*arrays)
    return dict(zip(("y", "query", "key", "value"), map(np.asarray, (y, *gradient)), strict=True))


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name, each in expected.items():
        assert np.linalg.norm(found[name] - each) < 1e-5 * np.linalg.norm(each), name


@pytest.mark.parametrize(("kernel", "case", "groups", "mesh"), COMBINATIONS, ids=str)
def test_a_kernel_over_a_split_length_is_the_plain_one(
    kernel: str, case: str, groups: int, mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring_attention, "BLOCK", 4)  # several blocks in a piece, of 3 or 4 keys
    arrays = draw(groups)
    expected = attended("plain", arrays, **CASES[case])
    with activate(mesh.build()):
        same(attended(kernel, arrays, **CASES[case]), expected)


@pytest.mark.parametrize("kernel", ["ring", pytest.param("ulysses", marks=pytest.mark.slow)])
def test_keys_of_another_sequence_are_split_too(kernel: str) -> None:
    arrays = draw(2, keys=16)
    real = jnp.arange(16)[None] < jnp.array([16, 3, 8, 0])[:, None]  # one with none at all
    options = {
        "causal": False,
        "segments": (jnp.ones((4, LENGTH), jnp.int32), real.astype(jnp.int32)),
    }
    expected = attended("plain", arrays, **options)
    with activate(MESHES[0].build()):
        same(attended(kernel, arrays, **options), expected)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("mesh", [None, Mesh(data=4, tensor=2)], ids=str)
def test_where_length_is_not_split_it_is_the_plain_kernel_itself(
    mesh: Mesh | None, kernel: str
) -> None:
    arrays = draw(2)

    def traced(kernel: str) -> str:
        return str(jax.make_jaxpr(functools.partial(attend, causal=True, kernel=kernel))(*arrays))

    with activate(mesh.build() if mesh else Mesh(data=1).build(jax.devices()[:1])):
        assert traced(kernel) == traced("plain")


def test_a_window_ends_the_round_when_all_it_sees_has_come_by() -> None:
    turns = {
        window: ring_attention.Round(("sequence",), 8, True, window).turns(6)
        for window in (1, 2, 7, 8, 13, 14, 100, None)
    }
    assert turns == {1: 1, 2: 2, 7: 2, 8: 3, 13: 3, 14: 4, 100: 8, None: 8}
    # what is later comes last
    assert ring_attention.Round(("sequence",), 8, False, 2).turns(6) == 8


def keys_scored(round: ring_attention.Round, device: int, length: int) -> int:
    """Pairs of runs of queries and keys that a device computes in a whole round."""
    mine = round.starts(device, length)
    size = length // len(mine)
    theirs = [start for piece in range(round.count) for start in round.starts(piece, length)]
    return sum(
        bool(round.near(query, size, key, size)) * size**2 for query in mine for key in theirs
    )


def test_a_zigzag_gives_every_device_the_same_work_and_a_ring_does_not() -> None:
    ring = ring_attention.Round(("sequence",), 8, causal=True, window=None)
    zigzag = dataclasses.replace(ring, zigzag=True)
    assert [keys_scored(ring, device, 6) for device in range(8)] == [36 * n for n in range(1, 9)]
    assert [keys_scored(zigzag, device, 6) for device in range(8)] == [9 * 17] * 8
    runs = [int(start) for device in range(8) for start in zigzag.starts(device, 6)]
    assert sorted(runs) == list(range(0, 48, 3))  # each half of a piece has one owner


@pytest.mark.parametrize("kernel", KERNELS)
def test_bytes_that_are_sent_are_those_of_the_theory(kernel: str) -> None:
    mesh = Mesh(data=2, sequence=4).build()
    groups = 2
    pieces = 4
    at = NamedSharding(mesh, PartitionSpec("data", "sequence"))
    arrays = [
        jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=at) for each in draw(groups)
    ]  # where they are needed, so that nothing else is sent
    with activate(mesh):
        total = functools.partial(attend, causal=True, kernel=kernel)
        gradient = jax.grad(lambda *arrays: jnp.sum(jnp.sin(total(*arrays))), (0, 1, 2))
        module = hlo.parse(jax.jit(gradient).lower(*arrays).compile().as_text())
    rows_of = collectives.table(collectives.find_collectives(module, 8), dict(mesh.shape))
    sent = {row["kind"]: row["bytes"] for row in rows_of if row["axes"] == "sequence"}
    token = 4 // 2 * LENGTH // pieces * 8 * 4  # a head of one array
    around = 2 * groups * (2 * pieces + pieces + 1)  # keys and values, twice, and their gradients
    if kernel == "ulysses":  # Jacobs et al. (2023), section 3.2; each head of keys goes twice
        assert sent == {"all-to-all": 2 * token * (2 * HEADS + 2 * 4)}
    elif kernel == "ring":  # Liu et al. (2023), appendix B.4
        assert sent == {"collective-permute": token * around}
    else:  # all are dealt, and go home
        assert sent == {"collective-permute": token * (around + 2 * (2 * HEADS + 2 * groups))}


def temporary_bytes(kernel: str, length: int) -> int:
    """Of attention and its gradient, on each of eight devices that split the length."""
    layer = Attention(heads=2, causal=True, rotary=True, kernel=kernel)
    x = jax.ShapeDtypeStruct((1, length, 16), jnp.float32)
    with activate(MESHES[0].build()):
        params = jax.eval_shape(lambda: layer.init(jax.random.key(0), jnp.zeros(x.shape)))
        gradient = jax.grad(lambda params, x: jnp.sum(jnp.sin(layer.apply(params, x))))
        return jax.jit(gradient).lower(params, x).compile().memory_analysis().temp_size_in_bytes


def test_memory_grows_with_a_piece_and_not_with_all_pairs() -> None:
    gathered = temporary_bytes("plain", 8192)
    half = temporary_bytes("ring", 4096)
    whole = temporary_bytes("ring", 8192)
    assert whole < gathered / 10 and whole < 2.2 * half


@pytest.mark.parametrize(
    ("kernel", "changes", "words"),
    [
        ("zigzag", {"length": 40}, "'zigzag' takes lengths that two times sequence=8 div.* not 40"),
        ("zigzag", {"length": 36}, "'zigzag' takes lengths that sequence=8 divides.* not 36 quer"),
        ("zigzag", {"offset": jnp.int32(3)}, "'zigzag' takes neither a cache nor relative"),
        ("ulysses", {"length": 36}, "'ulysses' takes lengths that sequence=8 divides, not 36 quer"),
        (
            "ulysses",
            {"heads": 12},
            "heads over sequence=8, which does not divide 12 heads: .* ring",
        ),
        ("ulysses", {"offset": jnp.int32(3)}, "'ulysses' takes no cache: .* plain"),
    ],
)
def test_what_zigzag_and_ulysses_cannot_do_is_refused(
    kernel: str, changes: dict[str, Any], words: str
) -> None:
    options = dict(changes)
    arrays = draw(2, options.pop("length", LENGTH), heads=options.pop("heads", HEADS))
    attend_here = functools.partial(attend, causal=True, kernel=kernel, **options)
    with activate(MESHES[0].build()), pytest.raises(Refused, match=words):
        jax.eval_shape(attend_here, *arrays)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"bias": jnp.zeros((1, HEADS, LENGTH, LENGTH))},
            "takes neither a cache nor relative positions",
        ),
        ({"offset": jnp.int32(3)}, "takes neither a cache nor relative positions"),
        ({"length": 36}, "lengths that sequence=8 divides.* not 36 queries and 36 keys"),
        ({"keys": 16}, "equal ones if causal, not 48 queries and 16 keys"),
    ],
)
def test_what_a_ring_cannot_do_is_refused(changes: dict[str, Any], words: str) -> None:
    options = dict(changes)
    arrays = draw(2, options.pop("length", LENGTH), options.pop("keys", None))
    with activate(MESHES[0].build()), pytest.raises(Refused, match=words):
        attended("ring", arrays, causal=True, **options)
