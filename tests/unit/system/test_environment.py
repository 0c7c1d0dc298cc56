"""The environment of a run is read, compared and, where no run is possible, refused."""

import json
from pathlib import Path
from typing import Any

import jax
import pytest

from jaxbig.config.discover import load
from jaxbig.errors import Refused
from jaxbig.program.program import make_program
from jaxbig.system import environment
from jaxbig.system.environment import NEEDED, PROGRAM, RANDOM, config, devices, flags
from jaxbig.train.resume import other_draws


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets JAX's configuration for readers of it here, but not for JAX itself."""

    def put(**values: Any) -> None:
        monkeypatch.setattr(type(jax.config), "values", {**jax.config.values, **values})

    return put


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_numpy_dtype_promotion", "strict"),
        ("jax_disable_jit", True),
        ("jax_no_tracing", True),
        ("jax_transfer_guard", "disallow"),
    ],
)
def test_a_configuration_with_which_no_run_compiles_is_refused_before_anything_is(
    configured: Any, name: str, value: Any
) -> None:
    experiment = load("digits_convnet")
    configured(**{name: value})
    with pytest.raises(Refused, match=rf"{name.upper()}={value}: .*: unset it\.$"):
        make_program(experiment)


def test_each_name_of_the_lists_is_one_of_jax(configured: Any) -> None:
    """Of this JAX; others may have fewer, of which those that are there are read."""
    assert set(NEEDED) <= set(jax.config.values)
    assert len(set(RANDOM + PROGRAM) & set(jax.config.values)) > 12
    assert (
        json.loads(json.dumps(config())) == config()
    )  # it goes into run.json and to the other processes


def test_flags_are_parsed_without_those_for_dumps(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in environment.FLAGS:
        monkeypatch.delenv(name, raising=False)
    assert flags() == {}
    monkeypatch.setenv("XLA_FLAGS", " --xla_b=2  --xla_a --xla_dump_to=/tmp/host1 --xla_c=x=y")
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_jf_dump_to=/tmp/host1")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert flags() == {
        "XLA_FLAGS": {"--xla_a": "", "--xla_b": "2", "--xla_c": "x=y"},
        "NVIDIA_TF32_OVERRIDE": {"0": ""},
    }


def test_devices_are_reported_with_their_driver(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert devices() == {"number of devices": 8, "device kind": "cpu", "platform_version": "cpu"}

    class Client:
        platform_version = "PJRT C API\ncuda 12090"

    class Gpu:
        platform = "gpu"
        device_kind = "NVIDIA H100"
        client = Client()

    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.1\nGCC version: 12\n")
    monkeypatch.setattr(environment, "DRIVER", driver)
    monkeypatch.setattr(jax, "local_devices", lambda: [Gpu()])
    assert devices() == {
        "number of devices": 1,
        "device kind": "NVIDIA H100",
        "platform_version": "PJRT C API cuda 12090",
        "driver": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.1",
    }


CHANGED = {
    "jax_default_prng_impl": ("threefry2x32", "rbg"),
    "jax_enable_custom_prng": (False, True),
    "jax_enable_x64": (False, True),
    "jax_random_seed_offset": (0, 1),
    "jax_threefry_partitionable": (True, False),
}


@pytest.mark.parametrize("name", RANDOM)
def test_what_changes_the_numbers_that_a_seed_draws_makes_another_run(
    configured: Any, name: str
) -> None:
    before, now = CHANGED[name]
    assert config()[name] == before
    run = {"config": config()}
    assert other_draws(run) == []
    configured(**{name: now})
    text = [json.dumps(each) if not isinstance(each, str) else each for each in (before, now)]
    assert other_draws(run) == [f"{name}: {text[0]} -> {text[1]}"]
    assert other_draws({}) == []  # a run of before this was noted


@pytest.mark.parametrize("name", PROGRAM)
def test_what_changes_the_program_alone_is_no_other_run(configured: Any, name: str) -> None:
    run = {"config": config()}
    configured(**{name: "changed"})
    assert other_draws(run) == []
