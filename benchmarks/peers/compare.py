"""Train steps of our models beside small, plain rivals in flax.linen and PyTorch.

    python benchmarks/peers/compare.py gpt --against flax
    python benchmarks/peers/compare.py --against flax torch torch.compile

| case | shape |
|---|---|
| gpt | 6 blocks of width 384, 8 x 256 tokens |
| convnet | two convolutions, a dense layer; 128 images of 28 x 28 |
| resnet18 | 32 images of 32 x 32 |
| lstm | 2 layers of width 128, 128 x 100 tokens |
| vit | ViT-S/16, 8 images of 224 x 224 |
| bert | BERT-base, 4 x 128 tokens, of which 15% are to be found; logits for all |
| moe | 4 blocks of width 128 with 8 experts of 256, two a token; 8 x 128 tokens |

Both sides train the same parameters with AdamW on the same random batch in float32. Their first
losses must agree, or the exit code is 1. Then they step in turn; a ratio is that of two steps next
to each other, theirs / ours, so above 1 ours is faster; the median of all is printed, and the
middle half. Processor time is that of all threads, those that spin while they wait too; no ratio is
to be trusted that was taken beside other programs: the load before is printed. Rivals in PyTorch
need the extra `parity`, `torch.compile` a C++ compiler too.
"""

import argparse
import collections
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from cases import CASES, SMALL, random_rows
from side import Side

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.cli.tables import pairs
from jaxbig.config.experiment import Experiment
from jaxbig.distributed.sharding import device_put_batch
from jaxbig.program.program import make_program
from jaxbig.system.environment import versions
from jaxbig.system.json_files import to_json_text
from jaxbig.tracking.console import table

RIVALS = ("flax", "torch", "torch.compile")
AGREEING = 3
"""Steps whose losses are compared."""
TOLERANCE = 1e-3
COUNTED = ("dot", "convolution", "fusion", "custom-call", "reduce", "scatter", "gather", "select")
COUNTED += ("transpose", "copy", "convert", "exponential", "tanh", "divide", "while")
COUNTED += ("opt-barrier", "broadcast")


def make_ours(experiment: Experiment) -> tuple[Side, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Our side of a case, its first parameters by path, and its batch."""
    program = make_program(experiment, jax.devices()[:1])
    rows = random_rows(experiment)
    with program.activate():
        state = program.init()
        compiled = program.train_step.lower(state, program.batch).compile()
        batch = device_put_batch(rows, program.mesh)
    params = {path: np.array(leaf) for path, leaf in flatten_with_paths(state.params).items()}

    def step() -> float:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return Side(step, sum(leaf.size for leaf in params.values()), compiled), params, rows


def make_rival(rival: str, case: str, model: Any, params: Any, rows: Any) -> Side:
    """The same case in another framework."""
    if rival == "flax":
        return importlib.import_module("flax_step").make(case, model, params, rows)
    make = importlib.import_module("torch_step").make
    return make(case, model, params, rows, compiled=rival == "torch.compile")


def spent(side: Side) -> np.ndarray:
    """Wall and processor milliseconds of a step."""
    began = time.perf_counter(), time.process_time()
    side.step()
    return 1e3 * np.array([time.perf_counter() - began[0], time.process_time() - began[1]])


def compare(case: str, rival: str, experiment: Experiment, repeats: int) -> dict[str, Any]:
    """Losses and times of both sides, and whether they agree."""
    ours, params, rows = make_ours(experiment)
    theirs = make_rival(rival, case, experiment.model, params, rows)
    found: dict[str, Any] = {"case": case, "against": rival, "parameters": ours.parameters}
    try:
        first = theirs.step()
    except RuntimeError as error:  # the base of all that torch.compile raises
        if rival != "torch.compile":
            raise
        reason = " ".join(str(error).split("\n")[:2])
        return found | {"agree": True, "not compiled": f"{type(error).__name__}: {reason}"}
    losses = [[ours.step(), first]]
    losses += [[side.step() for side in (ours, theirs)] for _ in range(AGREEING - 1)]
    apart = np.abs(np.diff(losses)[:, 0])
    # the second of a pair may find warmer caches: the order alternates
    rounds = []
    for number in range(repeats):
        order = (ours, theirs) if number % 2 == 0 else (theirs, ours)
        pair = [spent(side) for side in order]
        rounds.append(pair if number % 2 == 0 else pair[::-1])
    times = np.array(rounds)  # [round, side, clock]
    ratios = times[:, 1] / times[:, 0]
    names = ("step_ms", "processor_ms")
    return found | {
        "their_parameters": theirs.parameters,
        "losses": losses,
        "apart": apart.tolist(),
        "agree": ours.parameters == theirs.parameters and bool((apart <= TOLERANCE).all()),
        "ours": dict(zip(names, np.median(times[:, 0], axis=0).tolist(), strict=True)),
        "theirs": dict(zip(names, np.median(times[:, 1], axis=0).tolist(), strict=True)),
        "ratio": np.quantile(ratios[:, 0], (0.25, 0.5, 0.75)).tolist(),
        "processor_ratio": float(np.median(ratios[:, 1])),
    }


def row(found: dict[str, Any]) -> dict[str, Any]:
    """A line of the table."""
    shown = {"case": found["case"], "against": found["against"]}
    shown |= {"parameters": f"{found['parameters']:,}"}
    if "not compiled" in found:
        names = ("loss off", f"by step {AGREEING}", "ours ms", "theirs ms", "ratio", "middle half")
        names += ("ours cpu ms", "theirs cpu ms", "cpu ratio")
        return shown | dict.fromkeys(names, "-")
    ours = found["ours"]
    theirs = found["theirs"]
    low, ratio, high = found["ratio"]
    return shown | {
        "loss off": f"{found['apart'][0]:.1e}",
        f"by step {AGREEING}": f"{max(found['apart']):.1e}",
        "ours ms": f"{ours['step_ms']:.1f}",
        "theirs ms": f"{theirs['step_ms']:.1f}",
        "ratio": f"{ratio:.2f}",
        "middle half": f"{low:.2f} to {high:.2f}",
        "ours cpu ms": f"{ours['processor_ms']:.1f}",
        "theirs cpu ms": f"{theirs['processor_ms']:.1f}",
        "cpu ratio": f"{found['processor_ratio']:.2f}",
    }


def machine(rivals: list[str], load: float) -> dict[str, Any]:
    """Versions and hardware; `load` is the average of the last minute before the run."""
    found: dict[str, Any] = {**versions()}
    if rivals != ["flax"]:
        found["torch"] = importlib.metadata.version("torch")
    cpus = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.+)$", cpus.read_text() if cpus.exists() else "", re.M)
    device = jax.devices()[0].device_kind
    return found | {
        "device": device if device != "cpu" or not names else names[0],
        "processors": len(os.sched_getaffinity(0)),
        "load before": f"{load:.2f}",
        "date": time.strftime("%Y-%m-%d"),
    }


def print_program(name: str, side: Side) -> None:
    """The compiler's count of FLOPs and bytes, and instructions by kind."""
    cost = side.compiled.cost_analysis()
    kinds = collections.Counter(
        re.findall(r"^\s+(?:ROOT )?%?\S+ = .*? ([a-z][a-z-]*)\(", side.compiled.as_text(), re.M)
    )
    counts = ", ".join(f"{kind} {kinds[kind]}" for kind in COUNTED if kinds[kind])
    print(
        f"{name}: {cost['flops'] / 1e9:.2f} GFLOP, {cost['bytes accessed'] / 1e9:.3f} GB, "
        f"{sum(kinds.values())} instructions: {counts}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,  # an error is its sentence alone
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cases", nargs="*", metavar="case", help=f"{', '.join(CASES)}; all")
    parser.add_argument("--against", nargs="+", choices=RIVALS, default=["flax"])
    parser.add_argument("--repeats", type=int, default=15, help="pairs of steps; default 15")
    parser.add_argument("--small", action="store_true", help="small models, to try the command")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--programs",
        action="store_true",
        help="instead of timing, print what XLA compiled of our step and of flax's",
    )
    options = parser.parse_args()
    names = options.cases or list(CASES)
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"there is no case {', '.join(unknown)}: the cases are {', '.join(CASES)}.")
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: it must be 1 or more.")
    if options.against != ["flax"] and importlib.util.find_spec("torch") is None:
        parser.error("PyTorch is missing: pip install 'jaxbig[parity]', or --against flax.")
    cases = {name: CASES[name](**(SMALL[name] if options.small else {})) for name in names}
    if options.programs:
        for case, experiment in cases.items():
            ours, params, rows = make_ours(experiment)
            print_program(f"{case}, ours", ours)
            theirs = make_rival("flax", case, experiment.model, params, rows)
            print_program(f"{case}, flax", theirs)
        return 0
    load = os.getloadavg()[0]
    found = []
    for case, experiment in cases.items():
        for rival in options.against:
            found.append(compare(case, rival, experiment, options.repeats))
            said = {name: value for name, value in row(found[-1]).items() if value != "-"}
            print(*(f"{name} {value}" for name, value in said.items()), sep=", ", file=sys.stderr)
    about = machine(options.against, load)
    if options.json:
        print(to_json_text({"pairs": options.repeats, "cases": found, "machine": about}, indent=1))
    else:
        table([row(each) for each in found], f"medians of {options.repeats} pairs; theirs / ours")
        table(pairs("machine", about), "")
    for each in found:
        if "not compiled" in each:
            print(f"{each['case']}: torch.compile failed: {each['not compiled']}", file=sys.stderr)
        elif not each["agree"]:
            ours, theirs = np.round(np.transpose(each["losses"]), 4).tolist()
            print(
                f"{each['case']}: {each['against']} has {each['their_parameters']:,} parameters "
                f"and the losses {theirs}, ours {each['parameters']:,} and {ours}.",
                file=sys.stderr,
            )
    return 0 if all(each["agree"] for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
