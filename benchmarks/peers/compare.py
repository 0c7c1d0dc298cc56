"""Train steps of our models beside small, plain rivals in flax.linen and PyTorch.

    python benchmarks/peers/compare.py --only gpt --against flax
    python benchmarks/peers/compare.py --against flax torch torch.compile

| case | shape |
|---|---|
| gpt | 6 blocks of width 384, 8 x 256 tokens |
| convnet | two convolutions, a dense layer; 128 images of 28 x 28 |
| resnet18 | 32 images of 32 x 32 |
| lstm | 2 layers of width 128, 128 x 100 tokens |

Both sides train the same parameters with AdamW on the same random batch in float32. Their first
losses must agree, or the exit code is 1. Then they step in turn; a ratio is that of two steps next
to each other, theirs / ours, so above 1 ours is faster; the median of all is printed. Processor
time is that of all threads, those that spin while they wait too; no ratio is to be trusted that was
taken beside other programs. Rivals in PyTorch need the extra `parity`.
"""

import argparse
import collections
import importlib
import importlib.util
import re
import sys
import time
from typing import Any

import jax
import numpy as np
from cases import CASES, random_rows
from side import Side

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.distributed.sharding import device_put_batch
from jaxbig.program.program import make_program

RIVALS = ("flax", "torch", "torch.compile")
AGREEING = 3
"""Steps whose losses are compared."""
TOLERANCE = 1e-3
COUNTED = ("dot", "convolution", "fusion", "custom-call", "reduce", "scatter", "gather", "select")
COUNTED += ("transpose", "copy", "convert", "exponential", "tanh", "divide", "while")
COUNTED += ("opt-barrier", "broadcast")


def make_ours(case: str) -> tuple[Side, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Our side of a case, its first parameters by path, and its batch."""
    experiment = CASES[case]()
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


def make_rival(rival: str, case: str, params: Any, rows: Any) -> Side:
    """The same case in another framework."""
    if rival == "flax":
        return importlib.import_module("flax_step").make(case, params, rows)
    make = importlib.import_module("torch_step").make
    return make(case, params, rows, compiled=rival == "torch.compile")


def spent(side: Side) -> np.ndarray:
    """Wall and processor milliseconds of a step."""
    began = time.perf_counter(), time.process_time()
    side.step()
    return 1e3 * np.array([time.perf_counter() - began[0], time.process_time() - began[1]])


def compare(case: str, rival: str, rounds: int) -> bool:
    """Prints a line of the table; whether the two sides agree."""
    ours, params, rows = make_ours(case)
    theirs = make_rival(rival, case, params, rows)
    losses = np.array([[side.step() for side in (ours, theirs)] for _ in range(AGREEING)])
    apart = np.abs(losses[:, 0] - losses[:, 1])
    agree = ours.parameters == theirs.parameters and bool((apart <= TOLERANCE).all())
    # the second of a pair may find warmer caches: the order alternates
    pairs = []
    for number in range(rounds):
        order = (ours, theirs) if number % 2 == 0 else (theirs, ours)
        pair = [spent(side) for side in order]
        pairs.append(pair if number % 2 == 0 else pair[::-1])
    times = np.array(pairs)  # [round, side, clock]
    wall, processor = np.median(times[:, 1] / times[:, 0], axis=0)
    (ours_ms, ours_cpu), (their_ms, their_cpu) = np.median(times, axis=0)
    print(
        f"{case:9} {rival:14} {ours.parameters:11,} {apart[0]:8.1e} {apart.max():9.1e} "
        f"{ours_ms:8.0f} {their_ms:8.0f} {wall:6.2f} {ours_cpu:8.0f} {their_cpu:8.0f} "
        f"{processor:6.2f}",
        flush=True,
    )
    if not agree:
        print(
            f"{case}: {rival} has {theirs.parameters:,} parameters and the losses "
            f"{losses[:, 1].round(4).tolist()}, ours {losses[:, 0].round(4).tolist()}.",
            file=sys.stderr,
        )
    return agree


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
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--against", nargs="+", choices=RIVALS, default=["flax"])
    parser.add_argument("--rounds", type=int, default=15, help="pairs of steps; default 15")
    parser.add_argument(
        "--programs",
        action="store_true",
        help="instead of timing, print what XLA compiled of our step and of flax's",
    )
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: it must be 1 or more.")
    if options.against != ["flax"] and importlib.util.find_spec("torch") is None:
        parser.error("PyTorch is missing: pip install 'jaxbig[parity]', or --against flax.")
    if options.programs:
        for case in options.only:
            ours, params, rows = make_ours(case)
            print_program(f"{case}, ours", ours)
            print_program(f"{case}, flax", make_rival("flax", case, params, rows))
        return 0
    print(f"{jax.devices()[0].device_kind}, median of {options.rounds} pairs; ms, theirs / ours")
    print(
        f"{'case':9} {'against':14} {'parameters':>11} {'loss off':>8} {'by step 3':>9} "
        f"{'ours':>8} {'theirs':>8} {'ratio':>6} {'ours cpu':>8} {'theirs':>8} {'ratio':>6}"
    )
    agreed = [
        compare(case, rival, options.rounds) for case in options.only for rival in options.against
    ]
    return 0 if all(agreed) else 1


if __name__ == "__main__":
    sys.exit(main())
