"""A process that is forked with its imports made is one that was started: by its words and end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.fork_server import Process, run

REPORT = """
import os, signal, sys
import jax
print(sys.argv[1:], os.getcwd(), os.environ.get("MINE"), jax.device_count(), hash("a"), flush=True)
hasty = jax.config.read("jax_disable_most_optimizations")
print(hasty, __name__, file=sys.stderr, flush=True)
os.kill(os.getpid(), int(sys.argv[1]))
"""


@pytest.mark.parametrize("words", [["--version"], ["list"], ["trian"], ["show", "nothing"]])
def test_forked_command_says_and_ends_as_a_plain_one(words: list[str], tmp_path: Path) -> None:
    forked = run(*words, cwd=tmp_path, env=os.environ, timeout=60)
    command = [sys.executable, "-m", "jaxbig", *words]
    plain = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert forked.returncode == plain.returncode
    assert (forked.stdout, forked.stderr) == (plain.stdout, plain.stderr)


def test_each_has_its_own_folder_environment_devices_and_seed_of_hashes(tmp_path: Path) -> None:
    script = tmp_path / "report.py"
    script.write_text(REPORT)
    seeds = set()
    for number, most in ((0, "0"), (1, "1")):
        (folder := tmp_path / str(number)).mkdir()
        changed = {"MINE": f"of {number}", "JAX_NUM_CPU_DEVICES": str(number + 2)}
        changed["JAX_DISABLE_MOST_OPTIMIZATIONS"] = most
        environment = {**os.environ, **changed}
        process = Process(9, "b", cwd=folder, env=environment, script=str(script), number=number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == process.poll() == -signal.SIGKILL
        *said, seed = out.split(" ")
        assert " ".join(said) == f"['9', 'b'] {folder} of {number} {number + 2}"
        assert err == f"{most == '1'} __main__\n"
        seeds.add(seed)
    assert len(seeds) == 2


def test_one_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    (tmp_path / "sleep.py").write_text("import time\ntime.sleep(600)")
    process = Process(cwd=tmp_path, env=os.environ, script=str(tmp_path / "sleep.py"))
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=0.1)
    assert process.poll() is None
    process.terminate()
    assert process.wait(timeout=60) == -signal.SIGTERM
