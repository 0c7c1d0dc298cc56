"""JAX does not start libtpu where there is no TPU, and does where anything hints at one."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jaxbig.system import accelerators
from jaxbig.system.accelerators import may_have_accelerator, skip_absent_tpu


@pytest.mark.parametrize(
    ("file", "content", "environment", "expected"),
    [
        ("dev/null", "", {}, False),
        ("dev/null", "", {"TPU_SKIP_MDS_QUERY": "1", "TPU_LIBRARY_PATH": "/"}, False),
        ("sys/bus/pci/devices/0000:00:04.0/vendor", "0x8086\n", {}, False),
        ("sys/bus/pci/devices/0000:00:04.0/vendor", "0x1ae0\n", {}, True),
        ("dev/accel0", "", {}, True),
        ("dev/vfio/0", "", {}, True),
        ("dev/nvidia0", "", {}, True),
        ("dev/kfd", "", {}, True),
        ("dev/null", "", {"TPU_WORKER_ID": "0"}, True),
        ("dev/null", "", {"JAX_FORCE_TPU_INIT": ""}, True),
    ],
)
def test_accelerator_is_known_by_its_files_and_variables(
    tmp_path: Path, file: str, content: str, environment: dict[str, str], expected: bool
) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(content)
    assert may_have_accelerator(environment, tmp_path) is expected


@pytest.mark.parametrize(
    ("installed", "platforms", "there", "expected"),
    [
        (True, None, False, ["cpu"]),
        (False, None, False, []),
        (True, "tpu", False, []),
        (True, None, True, []),
    ],
)
def test_jax_is_kept_on_the_cpu_only_where_libtpu_has_no_tpu(
    monkeypatch: pytest.MonkeyPatch,
    installed: bool,
    platforms: str | None,
    there: bool,
    expected: list[str],
) -> None:
    chosen: list[str] = []
    config = SimpleNamespace(
        values={"jax_platforms": platforms}, update=lambda name, value: chosen.append(value)
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "spec" if installed else None)
    monkeypatch.setattr(accelerators, "jax", SimpleNamespace(config=config))
    monkeypatch.setattr(accelerators, "may_have_accelerator", lambda environment: there)
    skip_absent_tpu()
    assert chosen == expected


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra `tpu`)"
)
@pytest.mark.skipif(may_have_accelerator({}), reason="this machine has a TPU or a GPU")
def test_no_command_prints_the_warnings_of_libtpu_without_a_tpu(jaxbig: Any) -> None:
    done = jaxbig("show", "digits_rnn", "--json", JAX_PLATFORMS="")  # as unset
    assert (done.returncode, done.stderr) == (0, "")
