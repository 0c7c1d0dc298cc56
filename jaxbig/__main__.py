"""The command line: `jaxbig VERB EXPERIMENT [--option value ...]`; each verb is a class, its fields its options."""

import contextlib
import dataclasses
import difflib
import io
import json
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxbig.errors import Failed, Refused
from jaxbig.experiment import Experiment, available, load, summary
from jaxbig.tracking.screen import Screen, table

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 75


@dataclasses.dataclass(frozen=True)
class List:
    """Every experiment, its one-line summary."""

    json: Flag = False
    """Print one JSON object and nothing else."""

    def __call__(self) -> int:
        rows = [{"experiment": name, "summary": summary(file)} for name, file in sorted(available().items())]
        print_json({"experiments": rows}) if self.json else table(rows)
        return DONE


@dataclasses.dataclass(frozen=True)
class OfExperiment:
    """A verb about one experiment."""

    name: tyro.conf.Suppress[str]
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    json: Flag = False
    """Print one JSON object on standard output and nothing else there."""


@dataclasses.dataclass(frozen=True)
class Show(OfExperiment):
    """The resolved experiment, its parameters and where they are put; no data is touched."""

    def __call__(self) -> int:
        from jaxbig.show import show

        shown = show(self.experiment)
        if self.json:
            print_json(shown)
            return DONE
        table(shown["table"], f"{self.name}: {shown['parameters']:,} parameters")
        print(f"\non {shown['devices']['count']} {shown['devices']['kind']}, mesh {shown['devices']['mesh']}")
        table([{"held by each device": n, "bytes": size} for n, size in shown["bytes_per_device"].items()])
        print("\n" + json.dumps(shown["experiment"], indent=1))
        return DONE


@dataclasses.dataclass(frozen=True)
class InWorkdir(OfExperiment):
    """A verb about a run of one experiment."""

    workdir: Path | None = None
    """The folder of the run; runs/NAME if it is not given."""

    def folder(self) -> Path:
        return self.workdir or Path("runs") / self.name


@dataclasses.dataclass(frozen=True)
class Train(InWorkdir):
    """Runs it; goes on by itself from the last good checkpoint in its folder."""

    fork: Flag = False
    """Where the folder holds another run: begin anew there from that run's weights, and keep it aside."""

    def __call__(self) -> int:
        from jaxbig.loop import fit

        screen, folder = Screen(self.json), self.folder()
        result = fit(self.experiment, folder, screen, self.fork)
        if self.json:
            print_json(result)
        again = f"jaxbig train {self.name}" + (f" --workdir {self.workdir}" if self.workdir else "")
        if result["interrupted"]:
            screen.say(f"interrupted and saved at step {result['step']}: the same command goes on from there")
            return INTERRUPTED
        screen.result(
            f"{self.name} is done",
            result,
            folder,
            [
                f"jaxbig evaluate {self.name}" + again.removeprefix(f"jaxbig train {self.name}"),
                f"jaxbig train {self.name} --seed 1 --workdir {folder}-seed1, then jaxbig compare {folder} {folder}-seed1",
                f"jaxbig train {self.name} --help names every option",
            ],
        )
        return DONE


@dataclasses.dataclass(frozen=True)
class Evaluate(InWorkdir):
    """The last good checkpoint of a run on the evaluation split; changes nothing in its folder."""

    def __call__(self) -> int:
        from jaxbig.evaluate import evaluate_run

        result = evaluate_run(self.experiment, self.folder())
        if self.json:
            print_json(result)
        else:
            table(
                [{"metric": name, "value": f"{value:.6f}"} for name, value in result["metrics"].items()],
                f"{self.name} at step {result['step']}",
            )
        return DONE


@dataclasses.dataclass(frozen=True)
class Bench(OfExperiment):
    """Seconds a step of the real loop against the bare compiled step; compile time and memory."""

    rounds_of: int = 50
    """Steps a round."""

    def __call__(self) -> int:
        from jaxbig.bench import bench

        result = bench(self.experiment, self.rounds_of, Screen(self.json))
        print_json(result) if self.json else table(
            [{"": name, "measured": str(v)} for name, v in result.items()]
        )
        return DONE


@dataclasses.dataclass(frozen=True)
class Compare:
    """What differs between two or more runs: config, versions, data, curves."""

    workdirs: tyro.conf.Positional[list[Path]]
    """Their folders; each is compared with the first."""
    json: Flag = False
    """Print one JSON object and nothing else."""

    def __call__(self) -> int:
        from jaxbig.compare import compare

        if len(self.workdirs) < 2:
            raise Refused(f"compare needs two or more folders and got {len(self.workdirs)}.")
        result = compare(self.workdirs)
        if self.json:
            print_json(result)
            return DONE
        keys = sorted({key for run in result["runs"] for key in run["metrics"] if key.startswith("eval/")})
        table(
            [
                {
                    "run": run["workdir"],
                    "step": str(run["step"]),
                    "state_sha256": str(run["state_sha256"])[:16],
                    **{key: f"{run['metrics'].get(key, float('nan')):.4f}" for key in keys},
                }
                for run in result["runs"]
            ]
        )
        for each in result["differences"]:
            print(f"\n{each['workdir']} against {result['runs'][0]['workdir']}:")
            print(
                "\n".join(f"  {line}" for line in each["lines"])
                or "  nothing differs in config, versions or data"
            )
        if result["curves"]:
            print()
            table(
                [
                    {key: f"{v:.3g}" if isinstance(v, float) else v for key, v in row.items()}
                    for row in result["curves"]
                ]
            )
        return DONE


VERBS: dict[str, Any] = {
    "list": List,
    "show": Show,
    "train": Train,
    "evaluate": Evaluate,
    "compare": Compare,
    "bench": Bench,
}


def main() -> None:
    """The console script."""
    try:
        sys.exit(run(sys.argv[1:]))
    except Refused as error:
        sys.exit(say(error, REFUSED))
    except Failed as error:
        sys.exit(say(error, FAILED))
    except KeyboardInterrupt:
        sys.exit(say("stopped at once; what was saved before is untouched", 130))
    except BrokenPipeError:  # the reader of our output went away
        sys.stderr.close()
        sys.exit(FAILED)


def say(error: object, code: int) -> int:
    """One sentence on standard error."""
    print(f"jaxbig: {error}", file=sys.stderr)
    return code


def run(arguments: Sequence[str]) -> int:
    """Carries out a command line; its exit code."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS and Orbax tell their inner life
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            "usage: jaxbig VERB [EXPERIMENT] [--option value ...]; jaxbig VERB EXPERIMENT --help names the options\n"
        )
        table([{"verb": name, "does": (verb.__doc__ or "").split("\n")[0]} for name, verb in VERBS.items()])
        return DONE
    word, *rest = arguments
    if word not in VERBS:
        near = difflib.get_close_matches(word, VERBS, n=1, cutoff=0.0)
        raise Refused(f"no verb {word!r}: the nearest is {near[0]}; all are {', '.join(VERBS)}.")
    verb = VERBS[word]
    if not issubclass(verb, OfExperiment):
        return parse(verb, rest, word)()
    if not rest or rest[0].startswith("-"):
        raise Refused(f"{word} needs an experiment first: jaxbig {word} NAME; `jaxbig list` names them.")
    name, *options = rest
    default = verb(name=Path(name).stem if name.endswith(".py") else name, experiment=load(name))
    return parse(verb, options, f"{word} {name}", default)()


def parse(verb: Any, options: Sequence[str], words: str, default: Any = None) -> Any:
    """The verb with its options set, by tyro; what tyro refuses in a box is refused in a sentence."""
    errors = io.StringIO()
    extra = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(verb, prog=f"jaxbig {words}", args=options, **extra)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        text = re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯]", "", errors.getvalue())
        title, body, *more = (
            " ".join(part.split()) for part in re.split(r"─{3,}", text) if part.strip(" \n")
        )
        near = re.findall(r"--[\w.-]+", more[0]) if more and more[0].startswith("Perhaps") else []
        hint = f"; the nearest: {', '.join(dict.fromkeys(near))}" if near else ""
        raise Refused(f"{body or title}{hint}; `jaxbig {words} --help` names all options.") from None


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    print(json.dumps(value, indent=1))


if __name__ == "__main__":
    main()
