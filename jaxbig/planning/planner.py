"""`jaxbig plan`: compiles an experiment for hardware that is not here, in a child process, and tries what would fit.

The child is `jaxbig plan` itself, told to compile: the compiler may crash or hang, and takes the process with it.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jaxbig.config.experiment import Experiment
from jaxbig.cost.hardware import GiB, Topology, fraction_note
from jaxbig.cost.remedies import remedies
from jaxbig.distributed.placement import check_slices
from jaxbig.errors import Failed, Refused
from jaxbig.system.exit_codes import INTERRUPTED
from jaxbig.system.signals import stop_signals

Plan = dict[str, Any]


def plan(
    command: Sequence[str],
    experiment: Experiment,
    topology: Topology,
    timeout: float,
    say: Callable[[str], None],
) -> Plan:
    """The plan of an experiment; `command` is what follows `jaxbig`, and makes the same plan in the child.

    Where it does not fit, `proposal` is the first plan that does, of those in order of their cost; None if none does.
    """
    check_possible(experiment, topology, timeout)
    say(f"compiling for {topology.devices} {topology.kind} chips, which may take minutes")
    result = compile_in_child(command, topology, timeout)
    if result["fits"]:
        return result
    say(lacking(result))
    for options in remedies(experiment, topology.devices, topology.slices):
        say(f"trying {' '.join(options)}")
        try:
            other = compile_in_child([*command, *options], topology, timeout)
        except (Refused, Failed) as error:  # such a setting is no way out: the next may be
            say(str(error))
            continue
        if other["fits"]:
            return result | {"proposal": {"options": options, **other}}
    return result | {"proposal": None}


def check_possible(experiment: Experiment, topology: Topology, timeout: float) -> None:
    """`Refused` where nothing can be compiled."""
    experiment.check()
    check_slices(experiment.mesh.sizes(topology.devices), topology.slices)
    if timeout <= 0:
        raise Refused(f"--timeout {timeout}: it must be more than 0 seconds.")
    if topology.is_tpu and importlib.util.find_spec("libtpu") is None:
        raise Refused(
            f"--topology {topology.name!r} needs the TPU compiler, libtpu: install it with `pip install 'jaxbig[tpu]'`."
        )


def lacking(result: Plan) -> str:
    """By how much a plan does not fit."""
    memory = result["memory"]
    over = (memory["peak_bytes"] - memory["available_bytes"]) / GiB
    note = f" ({fraction_note()})" if result["estimate"] else ""
    return f"it does not fit: {memory['peak_bytes'] / GiB:.2f} GiB a chip are {over:.2f} GiB too many{note}"


def compile_in_child(command: Sequence[str], topology: Topology, timeout: float) -> Plan:
    """Runs `jaxbig COMMAND --here`; `Refused` or `Failed` as it was, or where it crashed or took too long."""
    quiet = {"TPU_LOG_DIR": "disabled", "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3"}
    # no TPU is looked for, on this machine or at the cloud's metadata server; several plans may run at once
    absent = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    count = {} if topology.is_tpu else {"JAX_NUM_CPU_DEVICES": str(topology.devices)}
    # by an exception, so that the child ends too
    before = {
        each: signal.signal(each, lambda *_: sys.exit(INTERRUPTED)) for each in stop_signals()
    }
    child = subprocess.Popen(
        [sys.executable, "-m", "jaxbig", *command, "--here", "--json"],
        env={**os.environ, **quiet, **absent, **count},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, error = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Failed(
            f"the compiler for {topology.name} was not done after {timeout:g} s: give it more with --timeout."
        ) from None
    finally:
        child.kill()
        child.wait()
        for each, handler in before.items():
            signal.signal(each, handler)
    if child.returncode == 0:
        return json.loads(out[out.index("{") :])
    said = [
        line.removeprefix("jaxbig: ") for line in error.splitlines() if line.startswith("jaxbig: ")
    ]
    if child.returncode in (1, 2) and said:
        raise (Refused if child.returncode == 2 else Failed)(said[-1])
    how = (
        signal.Signals(-child.returncode).name
        if child.returncode < 0
        else f"exit code {child.returncode}"
    )
    raise Failed(
        f"the compiler for {topology.name} crashed ({how}): the last it said was {_last(error)!r}."
    )


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""
