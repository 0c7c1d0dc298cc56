"""What the command line can do: a verb is a class, its fields are its options."""

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import tyro

from jaxbig.bench import bench
from jaxbig.check import check, use_cpu
from jaxbig.compare import compare
from jaxbig.evaluate import evaluate_run
from jaxbig.experiment import available, flat, summary
from jaxbig.inspection import inspect
from jaxbig.loop import fit
from jaxbig.mesh import in_words
from jaxbig.options import lasting, without
from jaxbig.planning import plan
from jaxbig.planning.chips import parse_topology
from jaxbig.planning.compile import measure
from jaxbig.planning.flags import flags
from jaxbig.planning.search import ranking, search
from jaxbig.processes import leading
from jaxbig.replay import replay
from jaxbig.show import show
from jaxbig.signals import INTERRUPTED
from jaxbig.smoke import emptied, made_up, smoke
from jaxbig.sweep_verb import Sweep
from jaxbig.tracking.screen import Screen
from jaxbig.verb import DONE, FAILED, Flag, OfExperiment, OfRun, Verb, rows, run_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class List(Verb):
    """Every experiment, its one-line summary."""

    def __call__(self) -> int:
        found = [
            {"experiment": name, "summary": summary(file)}
            for name, file in sorted(available().items())
        ]
        return self.emit({"experiments": found}, ("", found))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show(OfExperiment):
    """The resolved experiment, its parameters and where they are put; no data is touched."""

    def __call__(self) -> int:
        shown = show(self.experiment)
        where = f"{shown['devices']['count']} x {shown['devices']['kind']}, mesh {shown['devices']['mesh']}"
        return self.emit(
            {key: value for key, value in shown.items() if key != "table"},
            (f"{self.name}: {shown['parameters']:,} parameters", shown["table"]),
            (f"\n{where}", rows("bytes on each device", shown["bytes_per_device"])),
            ("", rows("field", dict(flat(shown["experiment"])))),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(OfRun):
    """Runs it; goes on by itself from the last good checkpoint in its folder."""

    fork: Flag = False
    """Where the folder holds another run: begin anew there from that run's weights, and keep it aside."""

    adopt: Flag = False
    """Where the folder's run.json is lost or empty: resume from its checkpoints, which this very command must have
    made."""

    smoke: Flag = False
    """Two steps and an evaluation of a small sibling, on made-up records where the data is not here; in a folder of its
    own, which is emptied first."""

    def __call__(self) -> int:
        screen = self.join(saves=True)
        if self.smoke:
            folder = self.workdir or self.folder.with_name(f"{self.folder.name}-smoke")
            result = fit(smoke(self.experiment), emptied(folder), screen)
            return self.emit(result, ("", rows("smoke test", dict(flat(result["metrics"])))))
        result = fit(self.experiment, self.folder, screen, self.fork, self.adopt)
        if not leading():
            return INTERRUPTED if result["interrupted"] else DONE
        self.emit(result)
        if result["interrupted"]:
            saved = (
                f"saved at step {result['step']}"
                if result["step"]
                else "nothing was to be saved yet"
            )
            screen.say(f"interrupted; {saved}: the same command goes on from there")
            return INTERRUPTED
        screen.result(f"{self.name} is done", result, self.folder, self.hints())
        return DONE

    def hints(self) -> list[str]:
        """Commands to try next: evaluate this run, repeat it with the next seed in a folder of its own, compare."""
        same, seed = lasting(self.options), str(self.experiment.seed + 1)
        other = f"{re.sub(r'-seed[0-9]+$', '', str(self.folder))}-seed{seed}"
        repeated = [*without(same, ("--seed", "--workdir")), "--seed", seed, "--workdir", other]
        commands = [
            ["evaluate", self.name, *same],
            ["train", self.name, *repeated],
            ["compare", str(self.folder), other],
            ["train", self.name, "--help"],
        ]
        return [shlex.join(["jaxbig", *words]) for words in commands]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataPrepare(OfExperiment):
    """Fetches the experiment's data, where it comes over the network, and makes it ready to read."""

    def __call__(self) -> int:
        self.experiment.check()
        self.experiment.data.fetch()
        identity = self.experiment.data.prepare()
        sizes = {
            f"{split} examples": len(self.experiment.data.source(split))
            for split in ("train", "eval")
        }
        return self.emit(
            {"identity": identity, **sizes}, ("", rows("prepared", {"identity": identity, **sizes}))
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataInspect(OfExperiment):
    """What the model will see: the batch of a step, as a picture or as text, and what is in it."""

    step: int = 0
    """After so many steps; the batch is the one that the next step takes."""
    split: str = "train"
    """train or eval."""
    batches: int = 1
    """Of how many batches, from that one on, classes and padding are counted."""
    made_up: Flag = False
    """Of made-up records, where the data is not here."""
    picture: Path | None = None
    """Where images are drawn; NAME-train-STEP.png in this folder if it is not given."""

    def __call__(self) -> int:
        experiment = self.experiment
        if self.made_up:
            experiment = dataclasses.replace(experiment, data=made_up(experiment.data))
        experiment.check()
        experiment.data.prepare()
        picture = self.picture or Path(f"{run_name(self.name)}-{self.split}-{self.step}.png")
        found = inspect(experiment, self.step, self.split, self.batches, picture)
        told = {
            name: value
            for name, value in found.items()
            if name not in ("fields", "rows", "classes")
        }
        return self.emit(
            found,
            ("", rows("batch", told)),
            ("\nfields", found["fields"]),
            *[("\nclasses", rows("class", found["classes"]))] * bool(found["classes"]),
            *[("\nrows", [{k: repr(v)[1:-1] for k, v in row.items()} for row in found["rows"]])]
            * bool(found["rows"]),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(OfRun):
    """The last good checkpoint of a run on the evaluation split; changes nothing in its folder."""

    def __call__(self) -> int:
        self.join()
        result = evaluate_run(self.experiment, self.folder)
        if not leading():
            return DONE
        return self.emit(
            result, (f"{self.name} at step {result['step']}", rows("metric", result["metrics"]))
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay(OfRun):
    """A step of a run again, exactly, from the checkpoint before it; where it is bad, an operation at a time, to name
    the first that made a NaN or an infinity. Changes nothing in the run's folder."""

    step: int = 0
    """Which one, from 1."""

    def __call__(self) -> int:
        self.join()
        result = replay(self.experiment, self.folder, self.step)
        if not leading():
            return DONE
        told = {
            name: value for name, value in result.items() if name not in ("metrics", "operations")
        }
        return self.emit(
            result,
            (
                f"{self.name} again at step {self.step}",
                rows("replay", {**told, "bad": ", ".join(told["bad"])}),
            ),
            *[("", rows("metric", result["metrics"]))] * bool(result["metrics"]),
            *[("\nfirst made by", result["operations"])] * bool(result["operations"]),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check(OfExperiment):
    """Loss and every gradient of a step on the mesh, as so many devices of this CPU, against one; exit 1 where they are
    apart. No data is touched; what is large is shrunk."""

    tolerance: float | None = None
    """Of the loss, and of each parameter's gradient, relative; None: 1e-8 in float64, 1e-4 in float32."""

    def __call__(self) -> int:
        use_cpu(self.experiment.mesh)
        result = check(self.experiment, self.tolerance)
        furthest = sorted(result["errors"].items(), key=lambda item: -item[1])[:10]
        shown = {key: value for key, value in result.items() if key != "errors"}
        told = {
            **shown,
            "mesh": in_words(shown["mesh"]),
            "changed": "; ".join(shown["changed"]) or "nothing",
        }
        self.emit(
            shown,
            ("", rows("checked", told)),
            ("\nfurthest from one device", rows("gradient", dict(furthest))),
        )
        return DONE if result["ok"] else FAILED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench(OfExperiment):
    """Seconds a step of the real loop against the bare compiled step; compile time and memory."""

    steps_a_round: int = 50
    """Of five rounds of each."""

    def __call__(self) -> int:
        result = bench(self.experiment, self.steps_a_round, Screen(self.json))
        return self.emit(result, ("", rows("measured", result)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(OfExperiment):
    """Memory, FLOPs, collectives and time on hardware that is not here; no data is touched."""

    topology: str = ""
    """Chips and how they lie: v4, v5e, v5p or v6e TPUs as in v5p:4x4x8; a100, h100 or h200 GPUs as in h100:64."""
    slices: int = 1
    """How many such TPU slices, joined by the data center's network."""
    timeout: float = 1800.0
    """Seconds that the compiler may take."""
    search: int | None = None
    """Plans so many meshes, remat policies and batches, its own the first, and ranks them by time an example."""
    here: Flag = False
    """Compile in this process, which ends where the compiler crashes; else in a child of it."""

    def __call__(self) -> int:
        topology = parse_topology(self.topology, self.slices)
        if self.here:
            return self.emit(measure(self.experiment, topology))
        command, screen = ["plan", self.name, *self.options], Screen(self.json)
        if self.search is not None:
            found = search(
                command, self.experiment, topology, self.timeout, self.search, screen.say
            )
            self.emit({"plans": found}, ("", ranking(found)))
            if not self.json and found[0]["fits"]:
                screen.say(
                    f"\nthe fastest: jaxbig {shlex.join(command)} {shlex.join(found[0]['options'])}"
                )
            return DONE
        result = plan.plan(command, self.experiment, topology, self.timeout, screen.say)
        self.emit(result, *plan.rows(result))
        proposal = result.get("proposal")
        if proposal and not self.json:
            screen.say(f"\nthis fits: jaxbig {shlex.join([*command, *proposal['options']])}")
            self.emit(proposal, *plan.rows(proposal))
        return DONE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare(Verb):
    """What differs between two or more runs: config, versions, data, curves."""

    workdirs: tyro.conf.Positional[list[Path]]
    """Their folders; each is compared with the first."""

    def __call__(self) -> int:
        result = compare(self.workdirs)
        ends = [{**run, **dict(flat(run["metrics"])), "metrics": ""} for run in result["runs"]]
        kept = [
            key
            for key in ends[0]
            if key in ("workdir", "step", "state_sha256") or key.startswith("eval/")
        ]
        return self.emit(
            result,
            ("", [{key: run.get(key, "") for key in kept} for run in ends]),
            (f"\nagainst {self.workdirs[0]}", result["differences"] or [{"differences": "none"}]),
            ("\nhow far the curves are apart", result["curves"] or [{"shared metrics": "none"}]),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Verb):
    """Compiler flags for a chip, and what each is for, to export before a run; none is on by itself."""

    chip: tyro.conf.Positional[str]
    """v4, v5e, v5p, v6e, a100, h100 or h200."""

    def __call__(self) -> int:
        found = flags(self.chip)
        self.emit(
            found, ("not measured: compare with `jaxbig bench`", rows("flag", found["flags"]))
        )
        Screen(self.json).say(f"\nexport {found['variable']}={shlex.quote(found['value'])}")
        return DONE


VERBS: dict[str, Any] = {
    **{
        verb.__name__.lower(): verb
        for verb in (List, Show, Plan, Check, Train, Evaluate, Replay, Compare, Bench, Flags)
    },
    "sweep": Sweep,
    "data prepare": DataPrepare,
    "data inspect": DataInspect,
}
