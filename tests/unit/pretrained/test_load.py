"""Reading a folder into a model's leaves: what is wrong with it is named, and how much is read."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import NamedSharding, PartitionSpec

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.errors import Refused
from jaxbig.inference.export import write_weights
from jaxbig.models.language_model import Decoder, Encoder
from jaxbig.pretrained import load as loading
from jaxbig.pretrained.find_family import all_families, family_of_model
from jaxbig.pretrained.load import load, open_pretrained
from jaxbig.pretrained.weight_files import SINGLE, WeightFolder

MODEL = Decoder(
    vocab=24,
    depth=2,
    width=8,
    heads=2,
    norm="layer",
    bias=True,
    positions="learned",
    max_length=16,
    tie_embeddings=True,
)
TOKENS = np.zeros((1, 3), np.int32)


def abstract(model: Any, sharding: Any = None) -> dict[str, Any]:
    """The leaves of a model, unboxed, on the first device or as `sharding` says."""
    boxed = jax.eval_shape(lambda: model.init(jax.random.key(0), TOKENS))
    shapes = flatten_with_paths(nn.meta.unbox(boxed))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {
        path: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding(leaf) if sharding else here
        )
        for path, leaf in shapes.items()
    }


def weights(model: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        path: rng.standard_normal(leaf.shape, np.float32) for path, leaf in abstract(model).items()
    }


def write(model: Any, folder: Path, **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    write_weights(model, weights(model), folder, family_of_model(model), config={}, **options)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(MODEL, tmp_path / "folder")


def test_written_weights_are_read_again(folder: Path) -> None:
    loaded = load(open_pretrained(folder), MODEL, abstract(MODEL))
    assert loaded.fresh == loaded.left_out == ()
    for path, each in weights(MODEL).items():
        np.testing.assert_array_equal(loaded.leaves[path], each)


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_each_shard_reads_its_part_alone(
    folder: Path, scan: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leaf over 8 devices is read in eighths, so a host never has a whole one."""
    mesh = jax.make_mesh((8,), ("fsdp",))

    def split(leaf: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(leaf.shape) if size % 8 == 0]
        names = [None] * leaf.ndim
        if axes:
            names[axes[0]] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*names))

    sizes: list[int] = []
    read = WeightFolder.read

    def count(self: WeightFolder, name: str, index: Any) -> np.ndarray:
        part = read(self, name, index)
        sizes.append(part.size)
        return part

    monkeypatch.setattr(WeightFolder, "read", count)
    model = MODEL.clone(scan=scan)
    loaded = load(open_pretrained(folder), model, abstract(model, split))
    for path, leaf in loaded.leaves.items():
        if "up/kernel" in path:  # [8, 32], its first axis split
            assert {shard.data.size for shard in leaf.addressable_shards} == {leaf.size // 8}
    assert max(sizes) <= 8 * 8 * 3  # the key and value of one layer, whose heads do not divide
    assert sum(sizes) < 1.1 * sum(each.size for each in weights(MODEL).values())


def test_large_leaf_is_read_a_part_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "READ_BYTES", 64)
    sizes: list[int] = []
    read = WeightFolder.read

    def count(self: WeightFolder, name: str, index: Any) -> np.ndarray:
        part = read(self, name, index)
        sizes.append(part.nbytes)
        return part

    monkeypatch.setattr(WeightFolder, "read", count)
    loaded = load(open_pretrained(folder), MODEL, abstract(MODEL))
    for path, each in weights(MODEL).items():
        np.testing.assert_array_equal(loaded.leaves[path], each)
    assert max(sizes) == 4 * 32  # one input's row of the largest kernel


def change_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        content = json.loads(file.read_text()) | changes
        content = {key: value for key, value in content.items() if value != "removed"}
        file.write_text(json.dumps(content))

    return change


def change_tensors(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        tensors = safetensors.numpy.load_file(folder / SINGLE)
        change(tensors)
        safetensors.numpy.save_file(tensors, folder / SINGLE)

    return rewrite


def set_tensor(name: str, value: np.ndarray) -> Callable[[Path], None]:
    return change_tensors(lambda tensors: tensors.update({name: value}))


BROKEN = {
    "of no family": (change_config(model_type="mamba"), "is of model_type 'mamba': jaxbig reads"),
    "without a family": (change_config(model_type="removed"), "has no model_type"),
    "a key less": (change_config(n_layer="removed"), "config.json has no n_layer"),
    "another activation": (change_config(activation_function="mish"), "activation_function 'mish'"),
    "what we have not": (
        change_config(scale_attn_by_inverse_layer_idx=True),
        "scale_attn_by_inverse_layer_idx True: of gpt2 jaxbig has False alone",
    ),
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "a config of nothing": (
        lambda folder: (folder / "config.json").write_bytes(b""),
        "config.json is not JSON",
    ),
    "a tensor less": (
        change_tensors(lambda tensors: tensors.pop("transformer.h.1.mlp.c_fc.bias")),
        "has no tensor transformer.h.1.mlp.c_fc.bias: blocks/block_1/up/bias is made of it",
    ),
    "a tensor more": (
        set_tensor("transformer.h.2.mlp.c_fc.bias", np.zeros(32, np.float32)),
        "has tensor transformer.h.2.mlp.c_fc.bias, which a gpt2 model of these fields does not",
    ),
    "another shape": (
        set_tensor("transformer.wpe.weight", np.zeros((17, 8), np.float32)),
        r"wpe.weight is \[17, 8\], and for positions/embedding it must be \[16, 8\]",
    ),
    "a layer's other shape": (
        set_tensor("transformer.h.1.attn.c_attn.weight", np.zeros((8, 25), np.float32)),
        r"c_attn.weight is \[8, 25\], and for blocks/block_1/attention/query/kernel",
    ),
    "whole numbers": (
        set_tensor("transformer.wpe.weight", np.zeros((16, 8), np.int32)),
        "wpe.weight is I32: jaxbig reads F64, F32, F16, BF16",
    ),
    "a head that is not tied": (
        set_tensor("lm_head.weight", np.zeros((24, 8), np.float32)),
        "says that tensor lm_head.weight is transformer.wte.weight, and it is another",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_folder_that_is_not_of_the_model_is_refused_in_one_sentence(
    folder: Path, kind: str
) -> None:
    harm, said = BROKEN[kind]
    harm(folder)
    with pytest.raises(Refused, match=said) as error:
        load(open_pretrained(folder), MODEL, abstract(MODEL))
    assert "\n" not in str(error.value)


def test_body_saved_without_its_prefix_with_masks_and_a_tied_head_is_read(folder: Path) -> None:
    tensors = safetensors.numpy.load_file(folder / SINGLE)
    bare = {name.removeprefix("transformer."): each for name, each in tensors.items()}
    masks = {f"h.{n}.attn.bias": np.ones((1, 1, 16, 16), np.uint8) for n in (0, 1)}
    safetensors.numpy.save_file(bare | masks, folder / SINGLE)
    assert not load(open_pretrained(folder), MODEL, abstract(MODEL)).left_out


def test_half_precision_is_read_as_float32(folder: Path) -> None:
    change_tensors(lambda t: t.update({n: each.astype(np.float16) for n, each in t.items()}))(
        folder
    )
    loaded = load(open_pretrained(folder), MODEL, abstract(MODEL))
    for path, each in weights(MODEL).items():
        assert loaded.leaves[path].dtype == np.float32
        np.testing.assert_array_equal(loaded.leaves[path], each.astype(np.float16))


def test_shards_are_read_as_one_file(tmp_path: Path) -> None:
    folder = write(MODEL, tmp_path / "folder", shard_bytes=2000)
    assert len(list(folder.glob("*.safetensors"))) > 3
    loaded = load(open_pretrained(folder), MODEL, abstract(MODEL))
    for path, each in weights(MODEL).items():
        np.testing.assert_array_equal(loaded.leaves[path], each)


def test_every_difference_of_a_model_is_named(folder: Path) -> None:
    other = dataclasses.replace(MODEL, width=16, norm="rms", dropout=0.5, scan=True)
    lines = open_pretrained(folder).differences(other)
    assert sorted(line.split(":")[0] for line in lines) == ["mlp_width", "norm", "width"]
    assert open_pretrained(folder).differences(MODEL.clone(dropout=0.5, mlp_width=32)) == []
    [line] = open_pretrained(folder).differences(Encoder(vocab=24))
    assert line == "model: Decoder there, Encoder here"


def test_head_that_a_folder_lacks_is_fresh_and_one_that_a_model_lacks_is_left_out(
    tmp_path: Path,
) -> None:
    encoder = Encoder(vocab=24, depth=1, width=8, heads=2, types=2, max_length=16)
    folder = write(encoder, tmp_path / "folder")
    classifier = encoder.clone(classes=3)
    loaded = load(open_pretrained(folder), classifier, abstract(classifier))
    assert {path.split("/")[1] for path in loaded.fresh} == {"classifier", "pooler"}
    assert {name.split(".")[0] for name in loaded.left_out} == {"cls"}


def test_pattern_reads_only_what_it_fits(folder: Path) -> None:
    loaded = load(open_pretrained(folder), MODEL, abstract(MODEL), pattern="^blocks/block_0/")
    assert loaded.leaves and all("/block_0/" in path for path in loaded.leaves)


def test_each_family_has_a_name_of_its_own_and_gives_a_field_once() -> None:
    names = [family.model_type for family in all_families()]
    assert len(set(names)) == len(names) > 2
    for family in all_families():
        assert not set(family.same) & set(family.ours)


def test_model_of_no_family_is_refused_with_what_each_misses() -> None:
    with pytest.raises(Refused, match="gpt2: norm: 'layer' there, 'rms' here"):
        family_of_model(MODEL.clone(norm="rms"), "gpt2")
    with pytest.raises(Refused, match="--family gpt3: it must be one of bert, "):
        family_of_model(MODEL, "gpt3")
