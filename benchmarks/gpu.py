"""Correctness, reproducibility and speed of jaxbig on a GPU; needs no network and no data.

    python benchmarks/gpu.py                        # every part
    python benchmarks/gpu.py --parts attention speed --out results
    JAX_PLATFORMS=cpu python benchmarks/gpu.py --small      # the same program rehearsed on a CPU

| part | measures |
|---|---|
| attention | fused attention and its gradients against plain attention in float32 |
| families | loss and gradient of a step of each family of models against a CPU |
| digests | equal digests of equal runs, also killed and resumed, `--reproducible`, `--offload` |
| speed | milliseconds of attention; step time, tokens or images a second, MFU; memory used |

Each line is one check: a value, its limit (none: the value is only reported), and whether it is
kept. The exit code is 1 if one is not. `--out` receives results.json and the standard error of each
run that failed.
"""

import argparse
import dataclasses
import fcntl
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PARTS = ("attention", "families", "digests", "speed")
LOCK = Path(tempfile.gettempdir()) / "jaxbig-gpu.lock"
"""Held while one process measures: take it yourself to keep the GPU for something else."""
Line = tuple[str, float, str, float | None]
"""Of a process with one case: what, value, unit, bar."""
ALONE = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
"""Environment of processes that share the GPU."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the result."""

    part: str
    case: str
    value: float | str
    unit: str = ""
    bar: float | str | None = None
    """What the value must not exceed, or, of a text, equal."""

    @property
    def ok(self) -> bool:
        if self.bar is None:
            return True
        if isinstance(self.bar, str) or isinstance(self.value, str):
            return self.value == self.bar
        return self.value <= self.bar

    def line(self) -> str:
        value = self.value if isinstance(self.value, str) else f"{self.value:.4g}"
        bar = "" if self.bar is None else f"  bar {self.bar}"
        return (
            f"{'ok  ' if self.ok else 'FAIL'} {self.part:9} {self.case:58} {value} {self.unit}{bar}"
        )


# -- attention


ATTENTION: dict[str, dict[str, Any]] = {
    "causal": {"causal": True},
    "both directions": {"causal": False},
    "causal, grouped heads": {"causal": True, "kv_heads": 2},
    "causal, one key head": {"causal": True, "kv_heads": 1},
    "causal, window": {"causal": True, "window": 64},
    "causal, packed segments": {"causal": True, "segments": "packed"},
    "padding": {"causal": False, "segments": "padding"},
    "causal, head width 128": {"causal": True, "width": 128},
    "causal, biases": {"causal": True, "bias": True},
    "unequal lengths": {"causal": False, "keys": 384},
}


def attention(small: bool) -> Iterator[Check]:
    """Values and gradients of each kind of mask."""
    import jax
    import jax.numpy as jnp

    length = 128 if small else 512
    for name, case in ATTENTION.items():
        if not wanted(name):
            continue
        arrays = attention_inputs(case, 2, length, 8)
        wide = {
            n: x.astype(jnp.float32) if n in ("query", "key", "value") else x
            for n, x in arrays.items()
        }
        with jax.default_matmul_precision("highest"):
            expected = run_attention("plain", case, wide)
        fused = "plain" if small else "fused"
        worst, plain = (
            max(
                distance(found, right)
                for found, right in zip(run_attention(k, case, arrays), expected, strict=True)
            )
            for k in (fused, "plain")
        )
        yield Check(
            "attention", f"{name}: bf16 fused from float32 plain", worst, "", max(2 * plain, 0.01)
        )


def attention_times(small: bool) -> Iterator[Check]:
    """Milliseconds of a forward and backward pass."""
    sizes = [(2, 128, 4)] if small else [(8, 1024, 12), (4, 4096, 32)]
    for batch, length, heads in sizes:
        for name in filter(wanted, ("causal", "causal, packed segments")):
            for kernel in ("plain",) if small else ("plain", "fused"):
                if kernel == "plain" and length > 2048:
                    continue  # its scores of all pairs take tens of GB
                arrays = attention_inputs(ATTENTION[name], batch, length, heads)
                seconds = timed(
                    lambda k=kernel, n=name, a=arrays: run_attention(k, ATTENTION[n], a), 10
                )
                yield Check(
                    "attention",
                    f"{name}: {kernel}, [{batch}, {length}, {heads}, 64]",
                    1e3 * seconds,
                    "ms",
                )


def attention_inputs(case: dict[str, Any], batch: int, length: int, heads: int) -> dict[str, Any]:
    """bf16 queries [B, T, H, K], keys and values [B, S, G, K], cotangent, mask and bias."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    width = case.get("width", 64)
    groups = case.get("kv_heads", heads)
    keys = case.get("keys", length)
    draw = jax.random.split(jax.random.key(0), 5)
    arrays = {
        "query": jax.random.normal(draw[0], (batch, length, heads, width), jnp.bfloat16),
        "key": jax.random.normal(draw[1], (batch, keys, groups, width), jnp.bfloat16),
        "value": jax.random.normal(draw[2], (batch, keys, groups, width), jnp.bfloat16),
        "cotangent": jax.random.normal(draw[3], (batch, length, heads, width), jnp.bfloat16),
    }
    if case.get("bias"):
        arrays["bias"] = jax.random.normal(draw[4], (1, heads, length, keys), jnp.float32)
    places = np.arange(length)
    if case.get("segments") == "packed":
        arrays["segments"] = jnp.asarray(np.tile(1 + places * 3 // length, (batch, 1)), jnp.int32)
    if case.get("segments") == "padding":
        arrays["segments"] = jnp.asarray(np.tile(places < length * 3 // 4, (batch, 1)), jnp.int32)
    return arrays


def run_attention(kernel: str, case: dict[str, Any], arrays: dict[str, Any]) -> tuple[Any, ...]:
    """The output and the gradients of queries, keys and values."""
    return attention_step(kernel, case["causal"], case.get("window"))(arrays)


def attention_step(kernel: str, causal: bool, window: int | None) -> Callable[..., Any]:
    import jax

    from jaxbig.models.layers.attention import attend

    key = (kernel, causal, window)
    if key not in _STEPS:

        def step(arrays: dict[str, Any]) -> tuple[Any, ...]:
            segments = arrays.get("segments")
            pair = None if segments is None else (segments, segments)

            def call(query: Any, key: Any, value: Any) -> Any:
                bias = arrays.get("bias")
                kinds = {
                    "causal": causal,
                    "window": window,
                    "segments": pair,
                    "bias": bias,
                    "kernel": kernel,
                }
                y = attend(query, key, value, **kinds)
                # rows of padding see nothing that is real, and nothing reads them
                return (
                    y if segments is None else y * (segments > 0)[:, :, None, None].astype(y.dtype)
                )

            y, pull = jax.vjp(call, arrays["query"], arrays["key"], arrays["value"])
            return (y, *pull(arrays["cotangent"].astype(y.dtype)))

        _STEPS[key] = jax.jit(step)
    return _STEPS[key]


_STEPS: dict[Any, Callable[..., Any]] = {}


def distance(found: Any, right: Any) -> float:
    """Norm of the difference over norm; infinite where a number is not finite."""
    import numpy as np

    found, right = (np.asarray(each, np.float64) for each in (found, right))
    if not np.isfinite(found).all():
        return math.inf
    return float(np.linalg.norm(found - right) / max(np.linalg.norm(right), 1e-30))


def timed(call: Callable[[], Any], times: int) -> float:
    """Seconds of a call, the median of `times`, after two that warm up."""
    import jax

    jax.block_until_ready(call())
    jax.block_until_ready(call())
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


# -- families


FAMILIES = {
    "conv net": "digits_convnet",
    "LSTM": "pytext_lstm",
    "Griffin": "pytext_griffin",
    "decoder": "pytext_llama",
    "encoder": "pytext_bert",
    "experts": "pytext_moe",
}


def families(small: bool, out: Path | None) -> Iterator[Check]:
    """A shrunken model of each family, in its own process: loss and gradient against a CPU."""
    yield from children(
        "families", "--family", list(FAMILIES)[:2] if small else list(FAMILIES), small, out
    )


def one_family(family: str) -> list[Line]:
    """One step in float32, as is and with products of full precision, and in bfloat16."""
    import jax

    from jaxbig.config.discover import load
    from jaxbig.config.precision import Precision
    from jaxbig.models.base import model_class
    from jaxbig.tools.check_sharding import apart, step
    from jaxbig.tools.shrink import random_batch, small_program

    here = jax.devices()[:1]
    cpu = jax.devices("cpu")[:1]
    experiment = load(FAMILIES[family])
    program = small_program(experiment, cpu, 8)
    batch = random_batch(program.experiment)
    with jax.default_matmul_precision("highest"):
        loss, expected = step(program, batch)
        found_loss, found = step(small_program(experiment, here, 8), batch)
    _, default = step(small_program(experiment, here, 8), batch)
    worst = apart(found, expected)
    leaf = max(worst, key=lambda path: worst[path])
    lines: list[Line] = [
        ("float32, highest precision: loss", abs(found_loss / loss - 1), "", 1e-5),
        ("the same: gradient", norm_apart(found, expected), "", 2e-4),
        (f"the same: worst leaf {leaf[-24:]}", worst[leaf], "", 2e-3),
        ("float32 as by default: gradient", norm_apart(default, expected), "", None),
    ]
    model = model_class(experiment.model).with_dtype(experiment.model, "bfloat16")
    if model is not None:
        half = dataclasses.replace(experiment, model=model)
        _, found = step(small_program(half, here, 8), batch)
        lines.append(("bfloat16: gradient", norm_apart(found, expected), "", 0.2))
        worst = apart(found, expected)
        leaf = max(worst, key=lambda path: worst[path])
        lines.append((f"the same: worst leaf {leaf[-24:]}", worst[leaf], "", None))
        half = dataclasses.replace(half, precision=Precision(sums="float32"))
        _, found = step(small_program(half, here, 8), batch)
        lines.append(("bfloat16, sums in float32: gradient", norm_apart(found, expected), "", 0.1))
    return lines


def norm_apart(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """Distance of two gradients as one vector each."""
    import numpy as np

    joined = [
        np.concatenate([np.ravel(tree[path]) for path in sorted(expected)])
        for tree in (found, expected)
    ]
    return distance(*joined)


# -- digests


RUNS: dict[str, tuple[str, ...]] = {
    "digits_convnet": (),
    "digits_rnn": (),
    "pytext_transformer": ("--model.dtype", "bfloat16"),
    "pytext_moe": ("--model.dtype", "bfloat16"),
}


def digests(small: bool, folder: Path, out: Path | None) -> Iterator[Check]:
    """Runs of the command line, several at once: which give the same bits."""
    names = list(RUNS)[:1] if small else list(RUNS)
    kinds = {"default": (), "--deterministic": ("--deterministic",)}
    asked = {
        (n, kind, again): (n, *RUNS[n], *kinds[kind])
        for n in names
        for kind in kinds
        for again in (0, 1)
    }
    for name in ("digits_convnet",) if small else ("digits_convnet", "pytext_transformer"):
        for again in (0, 1):
            asked[name, "--reproducible 8", again] = (name, "--reproducible", "8")
    if not small:
        same = asked["pytext_transformer", "--deterministic", 0]
        asked["pytext_transformer", "--deterministic --offload", 0] = (*same, "--offload")
    asked = {key: options for key, options in asked.items() if wanted(f"{key[0]} {key[1]}")}
    with ThreadPoolExecutor(2 if small else 10) as pool:
        began = {
            key: pool.submit(train, folder, out, key, options) for key, options in asked.items()
        }
        killed = f"{names[-1]} --deterministic: killed and resumed"
        resumed = (
            pool.submit(killed_and_resumed, folder, out, names[-1]) if wanted(killed) else None
        )
        for (name, kind, again), future in began.items():
            if again:
                continue
            first, seconds = future.result()
            if "--offload" in kind:
                alone = began.get((name, "--deterministic", 0))
                yield Check(
                    "digests",
                    f"{name} {kind}: as without",
                    first,
                    "",
                    alone.result()[0] if alone else None,
                )
                continue
            second = began[name, kind, 1].result()[0]
            must = (
                first if kind != "default" else None
            )  # elsewhere it is only reported whether they are
            same = (
                second
                if must or first.startswith("failed")
                else ("the same" if first == second else "another")
            )
            yield Check("digests", f"{name} {kind}: run again ({seconds:.0f} s)", same, "", must)
        if resumed is not None:
            yield Check("digests", killed, *resumed.result())


def train(folder: Path, out: Path | None, key: Any, options: Sequence[str]) -> tuple[str, float]:
    """A run of a few steps: its digest, in short, and seconds."""
    workdir = folder / "-".join(str(part).replace(" ", "") for part in key)
    began = time.perf_counter()
    ended = subprocess.run(
        command(workdir, options, 20), capture_output=True, text=True, env=environment(), cwd=folder
    )
    return digest_of(ended.stdout, ended.stderr, workdir.name, out), time.perf_counter() - began


def command(workdir: Path, options: Sequence[str], steps: int) -> list[str]:
    length = (
        "--steps",
        steps,
        "--evaluate-every",
        steps,
        "--checkpoint-every",
        10,
        "--evaluate-batches",
        2,
    )
    given = [str(each) for each in (*options, *length, "--workdir", workdir, "--json")]
    return [sys.executable, "-m", "jaxbig", "train", *given]


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, **ALONE, "PYTHONPATH": path}


def digest_of(stdout: str, stderr: str, name: str, out: Path | None) -> str:
    try:
        return json.loads(stdout)["state_sha256"][:12]
    except (ValueError, KeyError):
        if out is not None:
            (out / f"{name}.err").write_text(stderr[-20_000:])
        return f"failed: {' '.join(stderr.split())[-200:]}"


def killed_and_resumed(folder: Path, out: Path | None, name: str) -> tuple[str, str, str]:
    """Digest of a run that is killed and resumed, unit, digest of an uninterrupted one."""
    options = (name, *RUNS[name], "--deterministic")
    alone = subprocess.run(
        command(folder / "alone", options, 40),
        capture_output=True,
        text=True,
        env=environment(),
        cwd=folder,
    )
    workdir = folder / "killed"
    given = command(workdir, options, 40)
    process = subprocess.Popen(
        given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(), cwd=folder
    )
    while process.poll() is None and not (workdir / "checkpoints" / "20").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = subprocess.run(given, capture_output=True, text=True, env=environment(), cwd=folder)
    found = digest_of(again.stdout, again.stderr, "killed", out)
    return found, "", digest_of(alone.stdout, alone.stderr, "alone", out)


# -- speed


SPEED: dict[str, tuple[str, tuple[str, ...]]] = {
    "c4_gpt2_124m": ("c4_gpt2_124m", ("--data.batch", "32")),
    "c4_gpt2_124m, not packed": ("c4_gpt2_124m", ("--data.batch", "32", "--data.no-packed")),
    "c4_gpt2_124m, plain attention": (
        "c4_gpt2_124m",
        ("--data.batch", "32", "--data.no-packed", "--model.attention-kernel", "plain"),
    ),
    "c4_llama_1b": ("c4_llama_1b", ("--data.batch", "8", "--data.no-packed")),
    "imagenet_resnet50": ("imagenet_resnet50", ("--data.batch", "256")),
    "imagenet_vit_s16": ("imagenet_vit_s16", ("--data.batch", "512")),
    "LSTM of 2 x 1024": (
        "pytext_lstm",
        (
            "--model.width",
            "1024",
            "--data.batch",
            "128",
            "--data.length",
            "128",
            "--model.dtype",
            "bfloat16",
        ),
    ),
}
"""Experiment and options by case: batches that fit one GPU of 80 GB."""


def speed(small: bool, out: Path | None) -> Iterator[Check]:
    """Each case in its own process, so that the memory used is that of the case.

    They are compiled in parallel, so XLA chooses kernels on a busy GPU, and measured in turn.
    """
    yield from attention_times(small)
    yield from children("speed", "--case", list(SPEED)[-1:] if small else list(SPEED), small, out)


def one_case(case: str, small: bool) -> list[Line]:
    """Times the compiled train step on random rows that are on the device."""
    import jax

    from jaxbig.config.discover import load
    from jaxbig.config.options import parse
    from jaxbig.config.overrides import Overridden
    from jaxbig.cost.flops import model_flops
    from jaxbig.cost.memory import available_bytes, peak_bytes
    from jaxbig.distributed.sharding import device_put_batch
    from jaxbig.program.program import make_program
    from jaxbig.tools.shrink import random_batch
    from jaxbig.train.step_reporter import rates

    name, options = SPEED[case]
    if small:
        options = (*options, "--model.width", "64", "--data.batch", "4")
    experiment = parse(
        Overridden, options, f"train {name}", Overridden(experiment=load(name))
    ).experiment
    program = make_program(experiment, jax.devices()[:1])
    with program.activate():
        traced = program.train_step.trace(program.abstract, program.batch)
        flops = model_flops(experiment, program, traced.jaxpr)
        lowered = traced.lower()
        began = time.perf_counter()
        compiled = lowered.compile()
        compile_seconds = time.perf_counter() - began
        trace_init: Any = program.init
        init = trace_init.trace().lower().compile()
        rows = random_batch(experiment)
        print("compiled", file=sys.stderr, flush=True)
        sys.stdin.readline()  # until it is this process's turn
        batch = device_put_batch(rows, program.mesh)
        state = init()
        jax.block_until_ready(state)
        seconds: list[float] = []
        metrics: dict[str, Any] = {}
        for _ in range(6 if small else 23):
            began = time.perf_counter()
            state, metrics = compiled(state, batch)
            jax.block_until_ready((state, metrics))
            seconds.append(time.perf_counter() - began)
    after = statistics.median(seconds[3:])
    speeds = rates(experiment, flops, 1 / after)
    kind = next(unit for unit in ("tokens", "examples") if f"{unit}_per_second" in speeds)
    lines: list[Line] = [
        ("step", 1e3 * after, "ms", None),
        (f"{kind} a second", speeds[f"{kind}_per_second"], "", None),
        ("compiled in", compile_seconds, "s", None),
    ]
    if "mfu" in speeds:
        lines.append(("MFU", 100 * speeds["mfu"], "%", None))
    used = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    said = peak_bytes(compiled)
    lines.append(("memory by the compiler", said / 2**30, "GiB", None))
    if used:
        lines.append(("memory used over what the compiler says", used / said, "", 1.15))
        lines.append(("memory a program may take", (available_bytes() or 0) / 2**30, "GiB", None))
    if not math.isfinite(float(metrics["loss"])):
        lines.append(("loss is finite", math.inf, "", 0.0))
    return lines


# -- all


def children(
    part: str, option: str, cases: Sequence[str], small: bool, out: Path | None
) -> Iterator[Check]:
    """The lines of each case, from its own process.

    All start at once, and each in turn gets the GPU to itself.
    """
    started = []
    for case in (case for case in cases if wanted(case)):
        given = [sys.executable, __file__, option, case, *(["--small"] if small else [])]
        errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (open as long as the process)
        pipes: dict[str, Any] = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": errors,
        }
        started.append(
            (case, errors, subprocess.Popen(given, text=True, env=environment(), **pipes))
        )
    for case, errors, process in started:
        with LOCK.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            stdout, _ = process.communicate("go\n")
        errors.seek(0)
        said = errors.read()
        try:
            lines = json.loads(stdout.splitlines()[-1])
        except (ValueError, IndexError):
            if out is not None:
                (out / f"{part}-{case.replace(' ', '-').replace(',', '')}.err").write_text(
                    said[-20_000:]
                )
            yield Check(part, case, f"failed: {' '.join(said.split())[-300:]}", "", "")
            continue
        for name, value, unit, bar in lines:
            yield Check(part, f"{case}: {name}", value, unit, bar)


def wanted(case: str) -> bool:
    """Whether `--only` asks for it."""
    return not ONLY or any(text in case for text in ONLY)


ONLY: list[str] = []
"""Texts, one of which must be in the name of what is run; none: everything is."""


def failed(part: str, case: str, error: BaseException) -> Check:
    traceback.print_exception(error)
    return Check(
        part, case, f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}", "", ""
    )


def checks(part: str, small: bool, folder: Path, out: Path | None) -> Iterator[Check]:
    """The lines of a part; the last, if it broke off, says why."""
    began = time.perf_counter()
    try:
        yield from begin(part, small, folder, out)
    except Exception as error:  # the other parts may say something still
        yield failed(part, "", error)
    print(f"-- {part}: {time.perf_counter() - began:.0f} s", flush=True)


def begin(part: str, small: bool, folder: Path, out: Path | None) -> Iterator[Check]:
    if part == "attention":
        yield from attention(small)
    elif part == "families":
        yield from families(small, out)
    elif part == "digests":
        yield from digests(small, folder, out)
    else:
        yield from speed(small, out)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="jaxbig on a GPU: right, the same bits each time, and how fast."
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument(
        "--only", nargs="+", default=[], help="only cases with one of these texts in their names"
    )
    parser.add_argument("--small", action="store_true", help="small sizes, to rehearse on a CPU")
    parser.add_argument(
        "--out", type=Path, help="folder for results.json and what failed runs wrote"
    )
    parser.add_argument("--case", choices=SPEED, help=argparse.SUPPRESS)
    parser.add_argument("--family", choices=FAMILIES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    ONLY.extend(given.only)
    os.environ.update(ALONE)
    if given.case or given.family:
        print(
            json.dumps(
                one_case(given.case, given.small) if given.case else one_family(given.family)
            )
        )
        return 0
    import jax

    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, Python {sys.version.split()[0]}",
        flush=True,
    )
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
    found: list[Check] = []

    def run(part: str, folder: str) -> None:
        for check in checks(part, given.small, Path(folder), given.out):
            found.append(check)
            print(check.line(), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        right = [part for part in given.parts if part != "speed"]
        with ThreadPoolExecutor(
            1 if given.small else 3
        ) as pool:  # side by side, as nothing is measured
            list(pool.map(lambda part: run(part, folder), right))
        if "speed" in given.parts:
            run("speed", folder)
    wrong = [check for check in found if not check.ok]
    if given.out:
        lines = [{**dataclasses.asdict(check), "ok": check.ok} for check in found]
        (given.out / "results.json").write_text(json.dumps(lines, indent=1))
    print(f"{len(found) - len(wrong)} of {len(found)} as they must be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
