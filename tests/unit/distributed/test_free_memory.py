"""What a CPU's machine can still give: free memory, within its control groups."""

from pathlib import Path

import jax
import pytest
from support.experiments import small

from jaxbig.cost import memory
from jaxbig.cost.memory import available_bytes, free_bytes
from jaxbig.cost.out_of_memory import check_memory
from jaxbig.errors import Refused
from jaxbig.program.program import make_program

GiB = 2**30
# 24 GiB, of which 12 free
MEMINFO = "MemTotal:       25165824 kB\nMemFree:  1 kB\nMemAvailable:   12582912 kB\n"


def machine(
    root: Path, cgroup: str = "", files: dict[str, object] | None = None, meminfo: str = MEMINFO
) -> Path:
    for name, text in {
        "proc/meminfo": meminfo,
        "proc/self/cgroup": cgroup,
        **(files or {}),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(str(text))
    return root


TWO = "sys/fs/cgroup"
ONE = "sys/fs/cgroup/memory"
CASES = {
    "no groups": ("", {}, 12 * GiB),
    "version 2, of a container": (
        "0::/\n",
        {
            f"{TWO}/memory.max": 4 * GiB,
            f"{TWO}/memory.current": GiB,
            f"{TWO}/memory.stat": "inactive_file 0\n",
        },
        3 * GiB,
    ),
    "version 2, without a limit": (
        "0::/a/b\n",
        {
            f"{TWO}/a/b/memory.max": "max\n",
            f"{TWO}/a/b/memory.current": 1,
            f"{TWO}/a/b/memory.stat": "",
        },
        12 * GiB,
    ),
    "version 2, the job's above the step's": (
        "0::/job/step\n",
        {
            f"{TWO}/job/memory.max": 8 * GiB,
            f"{TWO}/job/memory.current": 6 * GiB,
            f"{TWO}/job/memory.stat": f"anon 1\ninactive_file {2 * GiB}\n",
            f"{TWO}/job/step/memory.max": "max",
            f"{TWO}/job/step/memory.current": 6 * GiB,
            f"{TWO}/job/step/memory.stat": "",
        },
        4 * GiB,
    ),
    "version 1": (
        "9:cpu,cpuacct:/x\n4:memory:/slurm/job_7\n0::/other\n",
        {
            f"{ONE}/slurm/job_7/memory.limit_in_bytes": 2 * GiB,
            f"{ONE}/slurm/job_7/memory.usage_in_bytes": GiB,
            f"{ONE}/slurm/job_7/memory.stat": f"inactive_file 5\ntotal_inactive_file {GiB // 2}\n",
        },
        GiB + 5,
    ),
    "a group that is over its limit": (
        "0::/\n",
        {f"{TWO}/memory.max": GiB, f"{TWO}/memory.current": 2 * GiB, f"{TWO}/memory.stat": ""},
        0,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_free_memory_is_the_least_of_the_machine_s_and_its_groups(
    name: str, tmp_path: Path
) -> None:
    cgroup, files, free = CASES[name]
    assert free_bytes(machine(tmp_path, cgroup, files)) == free


def test_free_memory_is_unknown_without_the_system_s_files(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) is None
    assert free_bytes(machine(tmp_path, meminfo="MemTotal: 5 kB\n")) is None


def test_free_memory_of_this_machine_is_below_its_total() -> None:
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    found = free_bytes()
    assert found is not None and 0 < found < total


def test_what_this_process_holds_already_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: 8_000)
    monkeypatch.setattr(jax, "live_arrays", lambda: [])
    assert available_bytes() == 8_000 // jax.local_device_count()
    held = jax.numpy.zeros(2_000, "float32")
    monkeypatch.setattr(jax, "live_arrays", lambda: [held])
    assert available_bytes() == 16_000 // jax.local_device_count()


def test_a_batch_beyond_free_memory_is_refused_with_what_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = make_program(small("digits_convnet"))
    check_memory(program)
    monkeypatch.setattr(memory, "free_bytes", lambda: 2**20)
    monkeypatch.setattr(jax, "live_arrays", lambda: [])  # those of other tests are no part of it
    with pytest.raises(Refused, match=r"out of memory: .* with 0\.\d\d GiB free .*need"):
        check_memory(
            make_program(
                small("digits_convnet", data=program.experiment.data.__class__(batch=2**16))
            )
        )
