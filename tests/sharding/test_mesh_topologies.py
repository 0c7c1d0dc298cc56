"""Every mesh on every kind of machine: TPU slices and GPU hosts that are not here, as simulated
devices."""

import dataclasses
import importlib.util
import itertools
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental import mesh_utils
from support.experiments import small

from jaxbig.config.discover import load
from jaxbig.cost.hardware import SERVER, parse_topology
from jaxbig.distributed.mesh import Mesh
from jaxbig.distributed.placement import AXES, arrange_devices, between_slices, count_slices
from jaxbig.errors import Refused
from jaxbig.planning.aot_compile import layout
from jaxbig.planning.planner import check_possible
from jaxbig.planning.search import meshes as searched
from jaxbig.planning.search import settings
from jaxbig.program.program import make_program

Sizes = tuple[int, ...]
STAGE = AXES.index("stage")
KINDS = {"v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite"}
MOST = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class Device:
    """What placing a mesh asks of a device."""

    id: int
    process_index: int
    slice_index: int
    platform: str
    device_kind: str
    coords: tuple[int, int, int] = (0, 0, 0)
    core_on_chip: int = 0
    client: Any = None


def tpus(kind: str, shape: Sizes, slices: int = 1) -> list[Device]:
    """A slice is a box of chips, numbered with x fastest; four of one plane are a host's."""
    x, y, z = (*shape, 1)[:3]
    places = list(itertools.product(range(slices), range(z), range(y), range(x)))
    hosts = sorted({(s, c, b // 2, a // 2) for s, c, b, a in places})
    return [
        Device(number, hosts.index((s, c, b // 2, a // 2)), s, "tpu", KINDS[kind], (a, b, c))
        for number, (s, c, b, a) in enumerate(places)
    ]


def hosts_of(count: int, each: int = SERVER, platform: str = "gpu") -> list[Device]:
    """Devices as XLA numbers them: a host has its own slice_index."""
    numbers = [number // each for number in range(count * each)]
    return [
        Device(number, host, host, platform, "NVIDIA H100 80GB HBM3")
        for number, host in enumerate(numbers)
    ]


def topologies() -> Iterator[tuple[str, Sizes, int]]:
    """Kind, sides and slices of all up to `MOST` chips: in 3-D sides of 4s and the small ones, in
    2-D powers of two."""
    fours = range(4, MOST // 16 + 1, 4)
    boxes = [
        (1, 1, 1),
        (2, 2, 1),
        (2, 2, 2),
        (2, 2, 4),
        (2, 4, 4),
        *itertools.product(fours, repeat=3),
    ]
    flat = [(1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16), (16, 32), (32, 32)]
    for kind, slices in itertools.product(KINDS, (1, 2)):
        for shape in flat if kind in ("v5e", "v6e") else boxes:
            rising = shape in boxes[:5] or list(shape) == sorted(shape)
            if rising and math.prod(shape) * slices <= MOST:
                yield kind, shape, slices


def meshes(devices: int, axes: int = len(AXES)) -> list[Sizes]:
    """All that take this many devices."""
    if axes == 1:
        return [(devices,)]
    sizes = [size for size in range(1, devices + 1) if not devices % size]
    return [(size, *rest) for size in sizes for rest in meshes(devices // size, axes - 1)]


def some(found: list[Sizes], count: int) -> list[Sizes]:
    """As many of them, always the same."""
    return found if len(found) <= count else random.Random(0).sample(found, count)


def first_steps(placed: np.ndarray) -> list[tuple[Device, Device]]:
    """The first device and its neighbor along each axis that splits something."""
    at = [tuple(int(other == axis) for other in range(placed.ndim)) for axis in range(placed.ndim)]
    return [
        (placed.flat[0], placed[where]) for axis, where in enumerate(at) if placed.shape[axis] > 1
    ]


def of_one_line(one: Device, other: Device) -> bool:
    return sum(a != b for a, b in zip(one.coords, other.coords, strict=True)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_mesh_on_every_slice_is_placed_or_refused_with_one_that_fits(kind: str) -> None:
    for _, shape, slices in (each for each in topologies() if each[0] == kind):
        devices = tpus(kind, shape, slices)
        for sizes in some(meshes(len(devices)), 12):
            if sizes[0] % (slices // math.gcd(sizes[STAGE], slices)):
                with pytest.raises(
                    Refused, match=f"data={sizes[0]} does not divide over {slices} slices"
                ) as said:
                    arrange_devices(sizes, devices)
                other = tuple(
                    int(word.strip(".").split("=")[1])
                    for word in str(said.value).split("--mesh.", 1)[1].split()
                )
                assert arrange_devices(other, devices).shape == other and math.prod(other) == len(
                    devices
                )
                continue
            placed = arrange_devices(sizes, devices)
            assert placed.shape == sizes and len(set(placed.flat)) == len(devices), (
                shape,
                slices,
                sizes,
            )
            of_slices = np.vectorize(lambda device: device.slice_index)(placed)
            crossed = {STAGE} if sizes[STAGE] % slices == 0 else {0, STAGE}
            for axis in set(range(len(AXES))) - crossed:
                assert np.array_equal(of_slices.min(axis), of_slices.max(axis)), (sizes, axis)
            assert list(dict.fromkeys(of_slices.flat)) == list(range(slices))


@pytest.mark.parametrize("kind", KINDS)
def test_neighbors_in_a_mesh_are_of_one_host_or_on_one_line_of_the_torus(kind: str) -> None:
    powers = [shape for _, shape, slices in topologies() if _ == kind and slices == 1]
    for shape in (each for each in powers if all(side & (side - 1) == 0 for side in each)):
        devices = tpus(kind, shape)
        for sizes in some(meshes(len(devices)), 24):
            for one, other in first_steps(arrange_devices(sizes, devices)):
                near = (
                    of_one_line(one, other) or len(devices) <= SERVER
                )  # of so few, jax makes a ring of a host's
                assert near, (shape, sizes, one.coords, other.coords)


@pytest.mark.parametrize(
    ("topology", "slices", "mesh"),
    [
        ("v5p:4x4x8", 1, Mesh(data=1, fsdp=64, tensor=2)),
        ("v5p:4x4x8", 1, Mesh(data=2, fsdp=32, tensor=2)),
        ("v5p:4x4x8", 1, Mesh(data=1, fsdp=16, tensor=8)),
        ("v5p:4x4x8", 1, Mesh(data=8, fsdp=2, tensor=8)),
        ("v5p:4x4x4", 1, Mesh(data=1, fsdp=8, tensor=8)),
        ("v5p:4x4x4", 1, Mesh(data=1, fsdp=32, tensor=2)),
        ("v5p:4x4x8", 2, Mesh(data=2, fsdp=64, tensor=2)),
        ("v5p:4x4x4", 2, Mesh(data=2, fsdp=32, tensor=2)),
        ("v5e:4x4", 2, Mesh(data=2, fsdp=8, tensor=2)),
        ("v6e:4x4", 1, Mesh(data=1, fsdp=8, tensor=2)),
        ("v6e:8x8", 1, Mesh(data=1, fsdp=32, tensor=2)),
        ("v5p:4x4x20", 1, Mesh(data=1, fsdp=10, tensor=32)),  # jax 0.10 drops a factor of 10
        ("v5p:4x4x28", 1, Mesh(data=1, fsdp=224, tensor=2)),
    ],
)
def test_a_mesh_that_splits_a_side_of_the_torus_is_built(
    topology: str, slices: int, mesh: Mesh
) -> None:
    parsed = parse_topology(topology, slices)
    devices = tpus(parsed.kind, parsed.shape, slices)
    built = mesh.build(devices)
    assert tuple(built.shape.values()) == mesh.sizes(len(devices)) and set(
        built.devices.flat
    ) == set(devices)
    along = built.devices[0, 0].reshape(-1)[:2]  # tensor, which sends most
    assert of_one_line(*along)


def test_chips_that_are_no_box_are_refused() -> None:
    with pytest.raises(Refused, match="these 6 TPU v5 chips cannot form a mesh"):
        arrange_devices((6, 1, 1, 1, 1, 1), [*tpus("v5p", (2, 2, 1)), *tpus("v5p", (2, 2, 4))[-2:]])
    with pytest.raises(Refused, match="the slices have 4, 8 chips: they must have the same number"):
        one = tpus("v5p", (2, 2, 1))
        two = tpus("v5p", (2, 2, 2))
        arrange_devices(
            (12, 1, 1, 1, 1, 1),
            [*one, *(dataclasses.replace(device, slice_index=1) for device in two)],
        )


def test_every_mesh_over_hosts_is_placed_with_the_inner_axes_inside_a_host() -> None:
    for count in range(1, 65):
        devices = hosts_of(count)
        for sizes in some(meshes(len(devices)), 24):
            placed = arrange_devices(sizes, devices)
            assert placed.shape == sizes and len(set(placed.flat)) == len(devices)
            host = np.vectorize(lambda device: device.process_index)(placed)
            inside = 1
            for axis in map(AXES.index, ("tensor", "sequence", "expert", "fsdp")):
                inside *= sizes[axis]
                if SERVER % inside:
                    break
                assert np.array_equal(host.min(axis), host.max(axis)), (count, sizes, AXES[axis])


def test_hosts_of_different_size_are_filled_one_after_the_other() -> None:
    devices = [device for device in hosts_of(2) if device.id != 15]
    assert [
        device.id for device in arrange_devices((1, 5, 3, 1, 1, 1), devices[::-1]).flat
    ] == list(range(15))


@pytest.mark.parametrize("platform", ["gpu", "cpu"])
@pytest.mark.parametrize(
    "sizes", [(1, 8, 1, 1, 1, 1), (2, 2, 2, 1, 1, 1), (1, 2, 2, 1, 2, 1), (8, 1, 1, 1, 1, 1)]
)
def test_one_host_is_laid_out_as_jax_does(platform: str, sizes: Sizes) -> None:
    shuffled = random.Random(0).sample(hosts_of(1, 8, platform), 8)
    theirs = jax.make_mesh(sizes, AXES, devices=shuffled).devices  # type: ignore[arg-type]
    assert np.array_equal(arrange_devices(sizes, shuffled), theirs)
    mesh = Mesh(**dict(zip(AXES, sizes, strict=True)))
    assert np.array_equal(mesh.build().devices, jax.make_mesh(sizes, AXES).devices)


@pytest.mark.parametrize("count", [2, 3, 4, 16])
def test_hosts_that_data_divides_over_are_laid_out_as_before(count: int) -> None:
    devices = random.Random(0).sample(hosts_of(count), count * SERVER)
    every = [sizes for sizes in meshes(len(devices)) if sizes[STAGE] == 1]
    for sizes in (sizes for sizes in some(every, 300) if sizes[0] % count == 0):
        inside = (sizes[0] // count, *sizes[1:])
        between = (count, 1, 1, 1, 1, 1)
        assert np.array_equal(
            arrange_devices(sizes, devices),
            mesh_utils.create_hybrid_device_mesh(inside, between, devices),
        )


@pytest.mark.parametrize("kind", KINDS)
def test_meshes_that_jax_places_without_splitting_a_side_keep_their_order(kind: str) -> None:
    compared = 0
    for _, shape, slices in (
        each for each in topologies() if each[0] == kind and math.prod(each[1]) <= 64
    ):
        devices = tpus(kind, shape, slices)
        for sizes in some(meshes(len(devices)), 40):
            between = between_slices(sizes, slices)
            inside = tuple(size // count for size, count in zip(sizes, between, strict=True))
            try:
                if slices == 1:
                    built = jax.make_mesh(sizes, AXES, devices=devices)  # type: ignore[arg-type]
                    theirs = built.devices
                else:
                    theirs = mesh_utils.create_hybrid_device_mesh(inside, between, devices)
            except (NotImplementedError, ValueError):
                continue
            compared += 1
            assert np.array_equal(arrange_devices(sizes, devices), theirs), (shape, slices, sizes)
    assert compared > 50


def test_hosts_are_no_slices() -> None:
    assert count_slices(hosts_of(4)) == count_slices(hosts_of(4, platform="cpu")) == 1
    assert count_slices(tpus("v5e", (2, 2), 2)) == 2 and count_slices(tpus("v5e", (2, 2))) == 1


@pytest.mark.parametrize("name", ["c4_llama_7b", "c4_mixtral_8x7b", "imagenet_resnet50"])
@pytest.mark.parametrize("hosts", [2, 4, 16])
def test_an_experiment_starts_on_hosts_of_eight_with_its_own_mesh(name: str, hosts: int) -> None:
    devices: Any = hosts_of(
        hosts, platform="cpu"
    )  # for GPUs cuDNN would be asked for, which is not here
    program = make_program(load(name), devices)
    assert program.mesh.devices.size == 8 * hosts
    parts = max(
        math.prod(leaf.shape) // math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in leaves_of(program)
    )
    assert parts == (1 if name == "imagenet_resnet50" else 8 * hosts)


def leaves_of(program: Any) -> list[Any]:
    return jax.tree.leaves(program.abstract.params)


@pytest.mark.parametrize(
    ("topology", "slices"),
    [("v5p:4x4x8", 1), ("v5p:4x4x4", 2), ("v6e:8x8", 1), ("v5e:4x4", 2), ("v5p:4x4x20", 1)],
)
def test_a_search_tries_meshes_that_split_a_side_and_all_can_be_built(
    topology: str, slices: int
) -> None:
    parsed = parse_topology(topology, slices)
    devices = tpus(parsed.kind, parsed.shape, slices)
    own = Mesh(data=slices, fsdp=-1).sizes(len(devices))
    found = list(searched(own, len(devices), slices))
    assert (slices, len(devices) // slices // 2, 2, 1, 1, 1) in found and len(set(found)) == len(
        found
    ) >= 12
    for sizes in found:
        assert arrange_devices(sizes, devices).shape == sizes


def test_a_search_over_slices_tries_only_what_divides_over_them() -> None:
    found = settings(small("pytext_llama", mesh=Mesh(data=-1)), 32, 2)
    assert {setting.mesh[0] % 2 for setting in found} == {0} and (2, 8, 2, 1, 1, 1) in {
        each.mesh for each in found
    }
    with pytest.raises(Refused, match="data=1 does not divide over 2 slices"):
        check_possible(
            small("pytext_llama", mesh=Mesh(data=1, fsdp=-1)), parse_topology("v5e:4x4", 2), 60.0
        )


def test_a_plan_for_gpus_counts_what_crosses_hosts_as_a_run_is_laid_out() -> None:
    gpus = parse_topology("h100:16")
    pod = parse_topology("v5p:2x2x4")
    mesh: dict[str, int] = dict(zip(AXES, (1, 1, 8, 1, 2, 1), strict=True))
    assert layout(gpus, mesh) == [number + 8 * expert for number in range(8) for expert in range(2)]
    placed = arrange_devices(tuple(mesh.values()), hosts_of(2))
    assert layout(gpus, mesh) == [device.id for device in placed.flat]
    assert layout(parse_topology("h100:12"), {**mesh, "tensor": 6}) == list(range(12))
    assert layout(pod, mesh) == list(range(16))


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: jaxbig[tpu]"
)
def test_simulated_topologies_are_those_of_the_compiler() -> None:
    names = [
        (kind, "x".join(map(str, shape)), slices)
        for kind, shape, slices in topologies()
        if shape != (1, 1, 1)
    ]
    program = """if True:
        import json, sys
        from jaxbig.distributed.placement import arrange_devices
        from jaxbig.cost.hardware import parse_topology
        from jaxbig.planning.aot_compile import devices_of
        for kind, shape, slices, sizes in json.load(sys.stdin):
            devices = devices_of(parse_topology(f"{kind}:{shape}", slices))
            chips = arrange_devices(tuple(sizes), devices).flat
            placed = [(getattr(each, "slice_index", 0), *each.coords) for each in chips]
            print(json.dumps([len(devices), devices[0].device_kind, placed]))
        """
    asked = []
    for kind, shape, slices in names:
        count = parse_topology(f"{kind}:{shape}", slices).devices
        asked.append(
            (
                kind,
                shape,
                slices,
                some([sizes for sizes in meshes(count) if not sizes[0] % slices], 1)[0],
            )
        )
    quiet = {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_LOG_DIR": "disabled",
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **quiet, "JAX_PLATFORMS": "cpu"},
        input=json.dumps(asked),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for (kind, shape, slices, sizes), line in zip(asked, done.stdout.splitlines(), strict=True):
        devices = tpus(kind, parse_topology(f"{kind}:{shape}").shape, slices)
        ours = [[each.slice_index, *each.coords] for each in arrange_devices(sizes, devices).flat]
        assert json.loads(line) == [len(devices), devices[0].device_kind, ours], (
            kind,
            shape,
            slices,
        )
