"""Plans an experiment for hardware that is not attached: memory, time, and settings that fit.

It compiles in a child process (`jaxbig plan --here`), since the compiler may crash or hang.
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
from jaxbig.system.exit_codes import FAILED, INTERRUPTED, REFUSED
from jaxbig.system.signals import handled, stop_signals

Plan = dict[str, Any]


def plan(
    command: Sequence[str],
    experiment: Experiment,
    topology: Topology,
    timeout: float,
    say: Callable[[str], None],
) -> Plan:
    """The plan of an experiment.

    Args:
      command: the arguments of `jaxbig` that make this plan, for the child process.
      experiment: what is planned.
      topology: the hardware.
      timeout: seconds that the compiler may take.
      say: prints a line of progress.

    Returns:
      The plan. If it does not fit, `proposal` is the cheapest plan that does, or None.
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
        except (Refused, Failed) as error:  # this setting does not work; the next may
            say(str(error))
            continue
        if other["fits"]:
            return result | {"proposal": {"options": options, **other}}
    return result | {"proposal": None}


def check_possible(experiment: Experiment, topology: Topology, timeout: float) -> None:
    """Raises `Refused` if nothing can be compiled."""
    experiment.check()
    check_slices(experiment.mesh.sizes(topology.devices), topology.slices)
    if timeout <= 0:
        raise Refused(f"--timeout {timeout}: it must be more than 0 seconds.")
    if topology.is_tpu and importlib.util.find_spec("libtpu") is None:
        raise Refused(
            f"--topology {topology.name!r} needs the TPU compiler, libtpu: install it with "
            f"`pip install 'jaxbig[tpu]'`."
        )


def lacking(result: Plan) -> str:
    """A message with the memory that a plan lacks."""
    memory = result["memory"]
    over = (memory["peak_bytes"] - memory["available_bytes"]) / GiB
    note = f" ({fraction_note()})" if result["estimate"] else ""
    need = memory["peak_bytes"] / GiB
    return f"it does not fit: {need:.2f} GiB a chip are {over:.2f} GiB too many{note}"


def compile_in_child(command: Sequence[str], topology: Topology, timeout: float) -> Plan:
    """Runs `jaxbig COMMAND --here` and returns its plan.

    Raises:
      Refused: the child refused the command.
      Failed: the child failed, crashed or exceeded `timeout` seconds.
    """
    quiet = {"TPU_LOG_DIR": "disabled", "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3"}
    # do not look for a TPU, here or at the cloud's metadata server; several plans may run at once
    absent = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    count = {} if topology.is_tpu else {"JAX_NUM_CPU_DEVICES": str(topology.devices)}
    children: list[subprocess.Popen[str]] = []
    stopped: list[int] = []

    def stop(number: int, _: object) -> None:
        stopped.append(number)
        if children:  # else it is being started, and an exception would lose it
            sys.exit(INTERRUPTED)

    with handled(stop_signals(), stop):
        try:
            children.append(
                subprocess.Popen(
                    [sys.executable, "-m", "jaxbig", *command, "--here", "--json"],
                    env={**os.environ, **quiet, **absent, **count},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            if stopped:
                sys.exit(INTERRUPTED)
            out, err = children[0].communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise Failed(
                f"the compiler for {topology.name} was not done after {timeout:g} s: "
                f"allow more with --timeout."
            ) from None
        finally:
            for child in children:
                with child:
                    child.kill()
    code = children[0].returncode
    if code == 0:
        return json.loads(out[out.index("{") :])
    lines = err.splitlines()
    said = [line.removeprefix("jaxbig: ") for line in lines if line.startswith("jaxbig: ")]
    if code == REFUSED and said:
        raise Refused(said[-1])
    if code == FAILED and said:
        raise Failed(said[-1])
    how = f"exit code {code}"
    if code < 0:
        how = signal.Signals(-code).name
    said = _last(err)
    raise Failed(f"the compiler for {topology.name} crashed ({how}): its last output was {said!r}.")


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""
