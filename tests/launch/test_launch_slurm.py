"""A real two-node Slurm: it accepts scripts, and preempted runs equal uninterrupted ones."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.compiling import HASTY
from support.experiments import ROOT
from support.slurm import missing, two_nodes

from jaxbig.launch.slurm import Slurm
from jaxbig.tracking.metrics_writer import read_metrics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=missing() or "it is here"),
]
SMALL = [
    "--reproducible=8",
    "--model.depth=1",
    "--model.width=32",
    "--data.length=32",
    "--optimizer.learning-rate.warmup=2",
]
# enough steps that a run does not end before its third preemption
TRAIN = [
    *SMALL,
    "--steps=300",
    "--log-every=1",
    "--checkpoint-every=20",
    "--evaluate-every=300",
    "--evaluate-batches=2",
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment from which jobs are submitted, with `jaxbig` on its path."""
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "bin").mkdir()
    (folder / "bin" / "jaxbig").write_text(f'#!/bin/sh\nexec {sys.executable} -m jaxbig "$@"\n')
    (folder / "bin" / "jaxbig").chmod(0o755)
    (folder / "files").mkdir()
    with two_nodes(folder / "files") as found:
        path = f"{folder}/bin{os.pathsep}{os.environ['PATH']}"
        yield {
            **found,
            **HASTY,
            "PATH": path,
            "PYTHONPATH": str(ROOT),
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        }


def submit(cluster: dict[str, str], folder: Path, name: str, *options: str) -> int:
    """The number of the job of a run in `runs/NAME`."""
    words = [
        sys.executable,
        "-m",
        "jaxbig.launch.slurm",
        "pytext_transformer",
        "--name",
        name,
        "--submit",
        *options,
    ]
    done = subprocess.run(
        [*words, "--", *TRAIN], cwd=folder, env=cluster, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def ask(cluster: dict[str, str], *words: object) -> str:
    return subprocess.run(
        [*map(str, words)], env=cluster, check=True, capture_output=True, text=True
    ).stdout.strip()


def until(condition: Callable[[], Any], seconds: float = 150) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it takes too long"
        time.sleep(0.05)


def again(cluster: dict[str, str], job: int) -> None:
    """Waits until a job is queued again, and lets it start soon; Slurm would wait two minutes.

    Its credentials have whole seconds: one made in the second in which the last was revoked is
    refused too.
    """
    until(lambda: ask(cluster, "squeue", "-h", "-j", job, "-o", "%T") == "PENDING")
    time.sleep(3)
    ask(cluster, "scontrol", "update", f"JobId={job}", "StartTime=now")


def test_a_job_of_two_nodes_that_is_preempted_ends_as_one_left_alone(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    alone = submit(cluster, tmp_path, "alone", "--nodes", "2")
    until(lambda: not ask(cluster, "squeue", "-h", "-o", "%i"))
    job = submit(cluster, tmp_path, "preempted", "--nodes", "2")
    run = tmp_path / "runs" / "preempted"

    def step() -> int:
        return max((line["step"] for line in read_metrics(run)), default=0)

    requeue = ["scontrol", "requeue", job]
    warn = ["scancel", "--signal=TERM", job]  # as before a time limit
    for preempt in (requeue, warn):
        before = step()
        until(lambda before=before: step() >= before + 4)  # it runs, and has resumed
        ask(cluster, *preempt)
        again(cluster, job)
    until(lambda: not ask(cluster, "squeue", "-h", "-o", "%i"))
    said = (tmp_path / f"preempted-{job}.out").read_text()
    ends = [
        json.loads((tmp_path / "runs" / name / "summary.json").read_text())
        for name in ("alone", "preempted")
    ]
    assert [end["step"] for end in ends] == [300, 300], said
    assert ends[0]["state_sha256"] == ends[1]["state_sha256"]
    record = json.loads((run / "run.json").read_text())
    assert len(record["starts"]) == 3 and record["devices"]["processes"] == 2
    assert said.count("interrupted; saved at step") == 2, said
    assert "COMPLETED" in ask(cluster, "scontrol", "show", "job", job) and alone != job


def test_sbatch_accepts_what_is_rendered(cluster: dict[str, str], tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "experiment": "digits_convnet",
        "overrides": ("--initialize-from.run=a; touch pwned $(id)",),
    }
    for job in (
        Slurm(**options, nodes=2, time="1-02:00:00", partition="main", cpus=1, memory="1M"),
        Slurm(
            **options,
            elements=((0, ("--seed", "0")), (4, ("--seed", "4"))),
            at_once=1,
            no_requeue=True,
        ),
    ):
        job.check()
        test = ["sbatch", "--test-only"]
        done = subprocess.run(
            test,
            input=job.render(),
            env=cluster,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 and "to start at" in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


def test_a_sweep_is_an_array_and_ranks_what_it_left(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    sweep = [
        sys.executable,
        "-m",
        "jaxbig",
        "sweep",
        "digits_convnet",
        "--set",
        "seed=0,1",
        "--steps=4",
        "--data.batch=16",
    ]
    submitted = subprocess.run(
        [*sweep, "--slurm", "time=10", "--submit"],
        cwd=tmp_path,
        env=cluster,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Submitted" in submitted.stdout, submitted.stderr
    until(lambda: not ask(cluster, "squeue", "-h", "-o", "%i"))
    ranked = subprocess.run(
        [*sweep, "--at-once", "0", "--json"],
        cwd=tmp_path,
        env=cluster,
        capture_output=True,
        text=True,
        check=False,
    )
    result = json.loads(ranked.stdout)
    assert [run["state"] for run in result["runs"]] == ["done", "done"] and sorted(
        result["ranked"]
    ) == [0, 1]
