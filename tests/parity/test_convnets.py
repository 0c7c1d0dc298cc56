"""The convolutional family against PyTorch's, published parameter counts, and what must hold to the
bit."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.distributed.mesh import Mesh, activate
from jaxbig.distributed.sharding import batch_sharding, parameter_shardings
from jaxbig.errors import Refused
from jaxbig.models import convnext, resnet
from jaxbig.models.alexnet import AlexNet
from jaxbig.models.convnet import Conv, ConvNet, Dense, Dropout, Pool
from jaxbig.models.convnext import ConvNeXt
from jaxbig.models.layers.convolution import BatchNorm, Convolution, GroupNorm, Padding
from jaxbig.models.resnet import ConvNorm, ResNet

torch = pytest.importorskip("torch")
torch.set_num_threads(1)
F = torch.nn.functional
Array = np.ndarray
KEY = jax.random.key(0)

VALID = functools.partial(Conv, padding="valid")
PYTORCH = (VALID(32), VALID(64), Pool(), Dropout(0.25), Dense(128), Dropout(0.5))
KERAS = (VALID(32), Pool(), VALID(64), Pool(), VALID(64), Dense(64))
SMALL = ResNet(classes=3, stages=(1, 1), bottleneck=False, stem="small", width=8)
BOTTLENECK = ResNet(classes=3, stages=(1, 2), width=4)
GROUPED = ResNet(
    classes=3, stages=(2, 1), bottleneck=True, norm="group", groups=2, stem="small", width=4
)
NEXT = ConvNeXt(classes=3, stages=(1, 2), widths=(8, 16), drop_path=0.0, layer_scale=0.5)
SMALL_ONES = {"basic": SMALL, "bottleneck": BOTTLENECK, "grouped": GROUPED, "convnext": NEXT}


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def drawn(module: nn.Module, *inputs: Any) -> Any:
    """Variables in the shapes of the module's, so that no bias is 0, no scale 1 and no running mean
    0."""
    shapes = nn.meta.unbox(jax.eval_shape(lambda: module.init(KEY, *inputs)))
    seeds = itertools.count(100)
    tree = jax.tree.map(
        lambda leaf: np.float32(0.4) * normal(*leaf.shape, seed=next(seeds)), dict(shapes)
    )
    return jax.tree_util.tree_map_with_path(
        lambda path, x: np.abs(x) + 0.5 if path[-1].key == "var" else x, tree
    )


def started(module: nn.Module, *inputs: Any) -> Any:
    return jax.jit(lambda: nn.meta.unbox(module.init(KEY, *inputs)))()


def applied(module: nn.Module, variables: Any, *inputs: Any, **how: Any) -> Any:
    return jax.jit(lambda variables, x: module.apply(variables, x, *inputs[1:], **how))(
        variables, inputs[0]
    )


def trained(module: nn.Module, variables: Any, x: Array, *train: bool) -> Any:
    """Outputs and batch statistics of a training step, and the gradient of sum(cos(outputs))."""
    rest = {name: value for name, value in variables.items() if name != "params"}
    how = {} if train else {"train": True}

    def loss(p: Any, x: Any) -> Any:
        y, changed = module.apply({"params": p, **rest}, x, *train, mutable=list(rest), **how)
        return jnp.sum(jnp.cos(y)), (y, changed)

    (_, (y, changed)), gradient = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(
        variables["params"], x
    )
    return y, changed, gradient


def close(ours: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """To so much of the largest entry of each leaf."""
    ours = flatten_with_paths({"": ours})
    expected = flatten_with_paths({"": expected})
    assert ours.keys() == expected.keys()
    for path, value in expected.items():
        value = np.asarray(value, np.float32)
        np.testing.assert_allclose(
            ours[path], value, 0, tolerance * max(np.max(np.abs(value)), 1), err_msg=path
        )


def counted(module: nn.Module, *shape: int) -> int:
    variables = jax.eval_shape(lambda: module.init(KEY, jnp.zeros(shape)))
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


# -- PyTorch's side: plain functions over our parameters, as tensors that keep their gradients


def tensors(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: torch.tensor(np.array(leaf), requires_grad=True), tree)


def gradients(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.grad.numpy(), tree)


def image(x: Any) -> Any:
    return x.permute(0, 3, 1, 2)


def pixels(x: Any) -> Any:
    return x.permute(0, 2, 3, 1)


def torch_conv(x: Any, p: Any, stride: int = 1, padding: int = 0, groups: int = 1) -> Any:
    return F.conv2d(x, p["kernel"].permute(3, 2, 0, 1), p.get("bias"), stride, padding, 1, groups)


def torch_standardized(p: Any) -> Any:
    variance, mean = torch.var_mean(p["kernel"], dim=(0, 1, 2), keepdim=True, unbiased=False)
    return {**p, "kernel": (p["kernel"] - mean) / torch.sqrt(variance + 1e-10)}


def torch_resnet(module: ResNet, p: Any, x: Any, statistics: Any = None) -> Any:
    """He et al. (2016) with the stride in the 3x3; with `statistics` given they are used, and
    follow the batch."""

    def layer(y: Any, at: tuple[str, ...], stride: int = 1, train: bool = True) -> Any:
        q = functools.reduce(lambda tree, name: tree[name], at, p)
        padding = q["conv"]["kernel"].shape[0] // 2
        norm = q["norm"]
        if module.norm == "group":
            y = torch_conv(y, torch_standardized(q["conv"]), stride, padding)
            return F.group_norm(y, module.groups, norm["scale"], norm["bias"])
        s = functools.reduce(lambda tree, name: tree[name], at, statistics)["norm"]
        y = torch_conv(y, q["conv"], stride, padding)
        return F.batch_norm(y, s["mean"], s["var"], norm["scale"], norm["bias"], True)

    y = torch.relu(layer(image(x), ("stem",), 2 if module.stem == "imagenet" else 1))
    y = F.max_pool2d(y, 3, 2, 1) if module.stem == "imagenet" else y
    for stage, blocks in enumerate(module.stages):
        for i in range(blocks):
            name = f"block_{stage}_{i}"
            stride = 2 if stage and not i else 1
            z = y
            for n in range(3 if module.bottleneck else 2):
                strided = n == (1 if module.bottleneck else 0)
                z = layer(
                    z if n == 0 else torch.relu(z),
                    (name, f"conv_{n + 1}"),
                    stride if strided else 1,
                )
            y = torch.relu(
                z + (layer(y, (name, "shortcut"), stride) if "shortcut" in p[name] else y)
            )
    return y.mean(dim=(2, 3)) @ p["head"]["kernel"] + p["head"]["bias"]


def torch_layer_norm(x: Any, p: Any) -> Any:
    return F.layer_norm(x, x.shape[-1:], p["scale"], p["bias"], 1e-6)


def torch_convnext(module: ConvNeXt, p: Any, x: Any) -> Any:
    y = x
    for stage, blocks in enumerate(module.stages):
        if stage == 0:
            y = torch_layer_norm(pixels(torch_conv(image(y), p["stem"], 4)), p["stem_norm"])
        else:
            y = torch_layer_norm(y, p[f"shrink_{stage}_norm"])
            y = pixels(torch_conv(image(y), p[f"shrink_{stage}"], 2))
        for i in range(blocks):
            q = p[f"block_{stage}_{i}"]
            z = pixels(torch_conv(image(y), q["depthwise"], 1, 3, y.shape[-1]))
            z = torch_layer_norm(z, q["norm"]) @ q["up"]["kernel"] + q["up"]["bias"]
            y = y + q["layer_scale"] * (F.gelu(z) @ q["down"]["kernel"] + q["down"]["bias"])
    return torch_layer_norm(y.mean(dim=(1, 2)), p["norm"]) @ p["head"]["kernel"] + p["head"]["bias"]


def check(
    module: Any, x: Array, theirs: Callable[[Any, Any], Any], *train: bool, tolerance: float = 1e-5
) -> None:
    """Outputs and gradients by every parameter and the input."""
    variables = drawn(module, x, *train)
    y, _, gradient = trained(module, variables, x, *train)
    p = tensors(variables["params"])
    inputs = tensors(x)
    expected = theirs(p, inputs)
    torch.cos(expected).sum().backward()
    close(y, expected.detach().numpy(), tolerance)
    close(gradient, (gradients(p), gradients(inputs)), tolerance)


# -- layers


class Plain(nn.Module):
    """A `Convolution` or `GroupNorm` called as the other layers are."""

    layer: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return self.layer(x)  # type: ignore[operator]


@settings(max_examples=10, deadline=None)
@given(
    st.sampled_from([1, 2, 3, 5]),
    st.integers(1, 3),
    st.integers(0, 2),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
)
def test_a_convolution_is_pytorchs(
    kernel: int, stride: int, padding: int, groups: int, standardized: bool
) -> None:
    def theirs(p: Any, x: Any) -> Any:
        q = torch_standardized(p["layer"]) if standardized and kernel > 1 else p["layer"]
        return pixels(torch_conv(image(x), q, stride, padding, groups))

    layer = Convolution(
        8, kernel, stride, padding, groups, standardized=standardized and kernel > 1
    )
    check(Plain(layer), normal(2, 7, 6, 4), theirs, True, tolerance=3e-5)


@pytest.mark.parametrize(("padding", "zeros"), [("same", 1), ("valid", 0)])
def test_padding_same_is_one_pixel_of_zeros_for_a_3x3_and_valid_is_none(
    padding: Padding, zeros: int
) -> None:
    check(
        Conv(4, padding=padding),
        normal(2, 6, 6, 3),
        lambda p, x: torch.relu(pixels(torch_conv(image(x), p, 1, zeros))),
        True,
    )


def test_a_standardized_kernel_has_mean_0_and_variance_1_whatever_its_scale() -> None:
    x = normal(1, 3, 3, 4)
    module = Convolution(5, padding="valid", standardized=True)
    variables = drawn(module, x)
    scaled = {"params": {**variables["params"], "kernel": 7 * variables["params"]["kernel"] + 3}}
    close(applied(module, scaled, x), applied(module, variables, x), 1e-4)


class Stack(nn.Module):
    """Convolution, pool and `BatchNorm`."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = Pool()(Conv(5, name="conv")(x, train), train)
        return BatchNorm(name="norm")(x, train)


def test_conv_pool_and_batch_norm_train_as_pytorchs_running_statistics_included() -> None:
    x = normal(3, 6, 6, 2)
    module = Stack()
    variables = drawn(module, x)
    y, changed, gradient = trained(module, variables, x)
    p = tensors(variables["params"])
    inputs = tensors(x)
    norm = torch.nn.BatchNorm2d(5)
    norm.weight, norm.bias = (torch.nn.Parameter(p["norm"][name]) for name in ("scale", "bias"))
    before = variables["batch_stats"]["norm"]
    norm.running_mean, norm.running_var = (torch.tensor(before[name]) for name in ("mean", "var"))
    pooled = F.max_pool2d(torch.relu(torch_conv(image(inputs), p["conv"], 1, 1)), 2)
    expected = pixels(norm(pooled))
    torch.cos(expected).sum().backward()
    close(y, expected.detach().numpy())
    p["norm"]["scale"].grad = norm.weight.grad
    p["norm"]["bias"].grad = norm.bias.grad
    close(gradient, (gradients(p), gradients(inputs)))
    close(
        changed["batch_stats"]["norm"],
        {"mean": norm.running_mean.numpy(), "var": norm.running_var.numpy()},
    )
    evaluated = applied(module, {**variables, **changed}, x)
    close(evaluated, pixels(norm.eval()(pooled)).detach().numpy())


@settings(max_examples=8, deadline=None)
@given(st.sampled_from([1, 2, 3, 6]), st.integers(1, 4), st.integers(1, 3))
def test_group_norm_is_pytorchs(groups: int, rows: int, batch: int) -> None:
    x = normal(batch, rows, 3, 6)
    check(
        Plain(GroupNorm(groups)),
        x,
        lambda p, x: pixels(
            F.group_norm(image(x), groups, p["layer"]["scale"], p["layer"]["bias"])
        ),
        True,
        tolerance=1e-4,  # a group of few, nearly equal values divides by nearly nothing
    )


def test_running_statistics_stay_in_evaluation_and_at_the_start() -> None:
    x = normal(4, 3, 3, 2)
    module = BatchNorm()
    initial = started(module, x, True)
    assert {
        path: np.ravel(leaf).tolist()
        for path, leaf in flatten_with_paths(initial["batch_stats"]).items()
    } == {"mean": [0, 0], "var": [1, 1]}
    variables = drawn(module, x, True)
    _, after = applied(module, variables, x, False, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, after["batch_stats"], variables["batch_stats"])


def test_rows_of_padding_change_no_evaluation_of_the_others() -> None:
    x = normal(4, 8, 8, 3)
    module = SMALL
    variables = drawn(module, x)
    padded = np.concatenate([x, 100 * normal(4, 8, 8, 3, seed=9)])
    close(applied(module, variables, padded)[:4], applied(module, variables, x), 1e-6)


def test_batch_statistics_over_eight_devices_are_those_of_the_whole_batch() -> None:
    x = 3 + 2 * normal(16, 4, 4, 8)
    module = ConvNorm(8, 3)
    variables = drawn(module, x, True)
    y, changed, gradient = trained(module, variables, x, True)
    mesh = Mesh(data=8).build()
    with activate(mesh):
        split = jax.device_put(x, batch_sharding(mesh))
        assert len({str(shard.index) for shard in split.addressable_shards}) == 8
        over, changed_over, gradient_over = trained(module, variables, split, True)
    close(over, y)
    close(changed_over, changed)
    close(gradient_over, gradient)


# -- whole nets


@pytest.mark.parametrize("name", ["basic", "bottleneck", "grouped"])
def test_a_residual_net_is_pytorchs(name: str) -> None:
    module = SMALL_ONES[name]
    x = normal(4, 16, 16, 3)
    variables = drawn(module, x)
    statistics = jax.tree.map(lambda leaf: torch.tensor(leaf), variables.get("batch_stats", {}))
    check(module, x, lambda p, x: torch_resnet(module, p, x, statistics), tolerance=1e-4)
    if statistics:
        _, changed, _ = trained(module, variables, x)
        close(changed["batch_stats"], jax.tree.map(lambda leaf: leaf.numpy(), statistics), 1e-4)


def test_a_convnext_is_pytorchs() -> None:
    check(NEXT, normal(2, 16, 16, 3), lambda p, x: torch_convnext(NEXT, p, x), tolerance=3e-5)


def check_over(mesh: Mesh, module: Any, x: Array, *train: bool) -> None:
    """A training step on eight devices against one: outputs, statistics and every gradient."""
    boxed = jax.eval_shape(lambda: dict(module.init(KEY, x, *train)))
    variables = drawn(module, x, *train)
    expected = trained(module, variables, x, *train)
    built = mesh.build()
    placed = jax.device_put(variables, parameter_shardings(boxed, built))
    with activate(built):
        ours = trained(module, placed, jax.device_put(x, batch_sharding(built)), *train)
    close(ours, expected, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("module", SMALL_ONES.values(), ids=SMALL_ONES)
def test_gradients_over_data_fsdp_and_tensor_are_those_of_one_device(module: Any) -> None:
    widths = {} if module is NEXT else {"width": 8}
    check_over(Mesh(data=2, fsdp=2, tensor=2), module.clone(**widths), normal(8, 16, 16, 3))


@pytest.mark.parametrize("groups", [2, 8])
@pytest.mark.parametrize(
    "mesh", [Mesh(2, 2, 2), Mesh(1, 2, 4), Mesh(1, 1, 8), Mesh(2, 4, 1)], ids=str
)
def test_gradients_of_a_grouped_convolution_over_any_mesh_are_those_of_one_device(
    mesh: Mesh, groups: int
) -> None:
    check_over(mesh, Plain(Convolution(16, groups=groups)), normal(8, 4, 4, 8), True)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_residual_block_starts_as_the_identity(bottleneck: bool) -> None:
    x = np.abs(normal(2, 4, 4, 8))
    block = resnet.Block(2 if bottleneck else 8, bottleneck=bottleneck)
    variables = started(block, x, True)
    ours, _ = applied(block, variables, x, True, mutable=["batch_stats"])
    np.testing.assert_array_equal(ours, x)


def test_a_convnext_block_without_layer_scale_is_the_identity() -> None:
    x = normal(2, 4, 4, 8)
    block = convnext.Block(layer_scale=0.0)
    np.testing.assert_array_equal(applied(block, started(block, x, True), x, True), x)


def test_drop_path_leaves_out_whole_branches_in_training_alone() -> None:
    x = normal(200, 2, 2, 4)
    rate = 0.25
    block = convnext.Block(1.0, rate)
    never = convnext.Block(1.0, 0.0)
    variables = drawn(never, x, True)
    branch = np.asarray(applied(never, variables, x, True)) - x
    np.testing.assert_array_equal(
        applied(block, variables, x, False), applied(never, variables, x, False)
    )
    dropped = np.asarray(applied(block, variables, x, True, rngs={"dropout": KEY})) - x
    gone = np.all(dropped == 0, axis=(1, 2, 3))
    assert abs(np.mean(gone) - rate) < 0.12  # four standard deviations
    close(dropped[~gone], branch[~gone] / (1 - rate))


def test_drop_path_rises_in_a_line_from_0_to_its_rate() -> None:
    seen = []

    def record(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, convnext.Block):
            seen.append(context.module.drop_path)
        return call(*args, **kwargs)

    module = NEXT.clone(stages=(2, 3), drop_path=0.4)
    x = normal(1, 16, 16, 3)
    with nn.intercept_methods(record):
        jax.eval_shape(lambda: module.init(KEY, x))
    np.testing.assert_allclose(seen, [0, 0.1, 0.2, 0.3, 0.4])


ALEX = AlexNet(classes=3, channels=(4, 4, 4, 4, 4), width=8)
LOW = {**SMALL_ONES, "alexnet": ALEX, "conv net": ConvNet((Conv(4), Pool(), Dense(5)), 3)}


@pytest.mark.parametrize("name", LOW)
def test_bfloat16_computes_in_bfloat16_from_float32_parameters(name: str) -> None:
    x = normal(4, 64 if name == "alexnet" else 16, 64 if name == "alexnet" else 16, 3)
    module: Any = LOW[name]
    low = module.clone(dtype="bfloat16")
    shapes = jax.eval_shape(lambda: low.init(KEY, x))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype("float32")}
    variables = drawn(module, x)
    ours = applied(low, variables, x)
    exact = applied(module, variables, x)
    assert ours.dtype == np.float32
    assert 0 < np.max(np.abs(ours - exact)) < 0.05 * np.max(np.abs(exact))
    kinds = [
        (eqn.primitive.name, eqn.invars[0].aval.dtype)
        for eqn in jax.make_jaxpr(lambda x: low.apply(variables, x))(x).eqns
    ]
    heavy = {
        dtype for primitive, dtype in kinds if primitive in ("conv_general_dilated", "dot_general")
    }
    assert heavy == {np.dtype("bfloat16")}


@pytest.mark.parametrize("side", [224, 227])
def test_alexnet_sees_55_27_13_and_6_pixels(side: int) -> None:
    seen = {}

    def record(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        y = call(*args, **kwargs)
        if isinstance(context.module, Convolution) and context.method_name == "__call__":
            seen[context.module.name] = y.shape[1:3]
        return y

    with nn.intercept_methods(record):
        shapes = jax.eval_shape(lambda: ALEX.init(KEY, jnp.zeros((1, side, side, 3))))
    assert list(seen.values()) == [(55, 55), (27, 27), (13, 13), (13, 13), (13, 13)]
    assert nn.meta.unbox(shapes)["params"]["dense_6"]["linear"]["kernel"].shape == (6 * 6 * 4, 8)


COUNTS: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    "PyTorch's MNIST example": (ConvNet(PYTORCH, 10), (1, 28, 28, 1), 1_199_882),
    "TensorFlow's tutorial": (ConvNet(KERAS, 10), (1, 28, 28, 1), 93_322),
    "AlexNet 224": (AlexNet(1000), (1, 224, 224, 3), 62_378_344),
    "AlexNet 227": (AlexNet(1000), (1, 227, 227, 3), 62_378_344),
    "AlexNet 2014": (AlexNet(1000, (64, 192, 384, 256, 256)), (1, 224, 224, 3), 61_100_840),
    "ResNet-18": (resnet.resnet(18, 1000), (1, 224, 224, 3), 11_689_512),
    "ResNet-34": (resnet.resnet(34, 1000), (1, 224, 224, 3), 21_797_672),
    "ResNet-50": (ResNet(1000), (1, 224, 224, 3), 25_557_032),
    "ResNet-101": (resnet.resnet(101, 1000), (1, 224, 224, 3), 44_549_160),
    "ResNet-152": (resnet.resnet(152, 1000, norm="group"), (1, 224, 224, 3), 60_192_808),
    "ConvNeXt-T": (ConvNeXt(1000), (1, 224, 224, 3), 28_589_128),
    "ConvNeXt-S": (ConvNeXt(1000, (3, 3, 27, 3)), (1, 224, 224, 3), 50_223_688),
    "ConvNeXt-B": (
        ConvNeXt(1000, (3, 3, 27, 3), (128, 256, 512, 1024)),
        (1, 224, 224, 3),
        88_591_464,
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_as_many_as_published(name: str) -> None:
    module, shape, count = COUNTS[name]
    assert counted(module, *shape) == count


REFUSED: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "kernel=4 even 'valid'": (ConvNet((Conv(4, kernel=4),), 3), (1, 8, 8, 1)),
    "array of 2 axes Dense": (ConvNet((Dense(4), Conv(4)), 3), (1, 8, 8, 1)),
    "kernel=5 4x3": (ConvNet((VALID(4, kernel=5),), 3), (1, 4, 3, 1)),
    "groups=32 24 channels": (ResNet(3, norm="group", width=24), (1, 32, 32, 3)),
    "norm 'layer' batch, group": (
        ResNet(3, norm="layer"),  # type: ignore[arg-type]
        (1, 32, 32, 3),
    ),
    "stem 'big' imagenet, small": (ResNet(3, stem="big"), (1, 32, 32, 3)),  # type: ignore[arg-type]
    "stages ()": (ResNet(3, stages=()), (1, 32, 32, 3)),
    "AlexNet 63x100 64x64": (AlexNet(3), (1, 63, 100, 3)),
    "channels (4, 4) 5": (AlexNet(3, channels=(4, 4)), (1, 64, 64, 3)),
    "stages (1, 2) widths (8,)": (ConvNeXt(3, (1, 2), (8,)), (1, 32, 32, 3)),
    "drop-path 1.0": (ConvNeXt(3, drop_path=1.0), (1, 32, 32, 3)),
    "kernel=2 1x1": (ConvNeXt(3), (1, 16, 16, 3)),
    "dtype 'half' float32, bfloat16": (
        AlexNet(3, dtype="half"),  # type: ignore[arg-type]
        (1, 64, 64, 3),
    ),
}


@pytest.mark.parametrize("words", REFUSED)
def test_fields_that_do_not_fit_are_refused_with_their_numbers(words: str) -> None:
    module, shape = REFUSED[words]
    with pytest.raises(Refused) as refused:
        counted(module, *shape)
    assert all(word in str(refused.value) for word in words.split())


def test_an_unknown_depth_is_refused_with_the_known_ones() -> None:
    with pytest.raises(Refused, match=r"depth 20.* 18, 34, 50, 101, 152"):
        resnet.resnet(20, 10)


def test_batch_statistics_of_one_value_are_refused() -> None:
    with pytest.raises(Refused, match="1 value a channel"):
        jax.eval_shape(lambda: BatchNorm().init(KEY, jnp.zeros((1, 1, 1, 4)), True))
