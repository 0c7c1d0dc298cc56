"""Ring attention is the plain kernel's over every mesh, gradients too, in memory that grows with a
piece alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.distributed.mesh import Mesh, activate
from jaxbig.errors import Refused
from jaxbig.models.layers import ring_attention
from jaxbig.models.layers.attention import Attention, attend

LENGTH = 48
HEADS = 4
PACKED = jnp.array(
    [[1] * 20 + [2] * 9 + [3] * 11 + [0] * 8, [1] * 47 + [0]] * 2
)  # documents, then padding
MESHES = [Mesh(data=1, sequence=8), Mesh(data=2, tensor=2, sequence=2)]
SLOW = [pytest.param(mesh, marks=pytest.mark.slow) for mesh in MESHES[:-1]]
CASES = {
    "causal": {"causal": True},
    "causal packed": {"causal": True, "segments": (PACKED, PACKED)},
    "causal window": {"causal": True, "window": 10},
    "window packed": {"causal": False, "window": 7, "segments": (PACKED, PACKED)},
    "all": {"causal": False},
    "causal capped": {"causal": True, "scale": 1.5, "cap": 2.0},
}


def draw(groups: int, length: int = LENGTH, keys: int | None = None) -> list[np.ndarray]:
    """Queries, keys, values."""
    normal = np.random.default_rng(0).standard_normal
    shapes = [(4, length, HEADS, 8), *[(4, keys or length, groups, 8)] * 2]
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


@pytest.mark.parametrize("mesh", [*SLOW, MESHES[-1]], ids=str)
@pytest.mark.parametrize(
    ("case", "groups"), [*((case, 2) for case in CASES), ("causal packed", 1), ("all", 4)]
)
def test_a_ring_is_the_plain_kernel(
    mesh: Mesh, case: str, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring_attention, "BLOCK", 4)  # several blocks in a piece, of 3 or 4 keys
    arrays = draw(groups)
    expected = attended("plain", arrays, **CASES[case])
    with activate(mesh.build()):
        same(attended("ring", arrays, **CASES[case]), expected)


def test_keys_of_another_sequence_go_round_too() -> None:
    arrays = draw(2, keys=16)
    real = jnp.arange(16)[None] < jnp.array([16, 3, 8, 0])[:, None]  # one with none at all
    options = {
        "causal": False,
        "segments": (jnp.ones((4, LENGTH), jnp.int32), real.astype(jnp.int32)),
    }
    expected = attended("plain", arrays, **options)
    with activate(MESHES[0].build()):
        same(attended("ring", arrays, **options), expected)


@pytest.mark.parametrize("mesh", [None, Mesh(data=4, tensor=2)], ids=str)
def test_where_length_is_not_split_it_is_the_plain_kernel_itself(mesh: Mesh | None) -> None:
    arrays = draw(2)
    with activate(mesh.build() if mesh else Mesh(data=1).build(jax.devices()[:1])):
        found, expected = (attended(kernel, arrays, causal=True) for kernel in ("ring", "plain"))
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_a_window_ends_the_round_when_all_it_sees_has_come_by() -> None:
    turns = {
        window: ring_attention.Round(("sequence",), 8, True, window).turns(6)
        for window in (1, 2, 7, 8, 13, 14, 100, None)
    }
    assert turns == {1: 1, 2: 2, 7: 2, 8: 3, 13: 3, 14: 4, 100: 8, None: 8}
    # what is later comes last
    assert ring_attention.Round(("sequence",), 8, False, 2).turns(6) == 8


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
