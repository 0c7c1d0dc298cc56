"""Shell completion: what can come next, and the scripts that ask for it."""

import subprocess

import pytest

from jaxbig.cli.commands import COMMANDS, takes_experiment
from jaxbig.cli.completion import SCRIPTS, candidates
from jaxbig.cli.main import run


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tr", ["train"]),
        ("da", ["data"]),
        ("data ", ["prepare", "inspect"]),
        ("data i", ["inspect"]),
        ("train digits_c", ["digits_convnet"]),
        ("data inspect digits_v", ["digits_vit", "digits_vit_probe"]),
        ("train digits_convnet --optimizer.b", ["--optimizer.b1", "--optimizer.b2"]),
        ("train digits_convnet --optimizer SGD --optimizer.mo", ["--optimizer.momentum"]),
        ("train digits_convnet --workd", ["--workdir"]),
        ("sweep digits_convnet --se", ["--set", "--seed"]),
        ("list --js", ["--json"]),
        ("parts AdamW", ["AdamW"]),
        ("train digits_convnet --workdir ru", []),
        ("train no_such --st", []),
        ("no_such ", []),
    ],
)
def test_candidates_are_what_can_stand_there(line: str, expected: list[str]) -> None:
    assert sorted(candidates(line.split(" "))) == sorted(expected)


def test_nothing_typed_offers_every_command() -> None:
    assert candidates([""]) == list(dict.fromkeys(name.split()[0] for name in COMMANDS))


def test_commands_on_experiments_are_known_without_importing_them() -> None:
    without = {name for name in COMMANDS if not takes_experiment(name)}
    assert {"list", "compare", "flags", "parts", "completion"} <= without
    assert not without & {"train", "evaluate", "show", "data inspect", "sweep"}


def test_bash_completes_with_the_answer_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    asked = 'jaxbig() { printf "%s\\n" "$4-a" "$4-b" other; }\n'
    typed = '\nCOMP_WORDS=(jaxbig train tra); COMP_CWORD=2; _jaxbig; echo "${COMPREPLY[*]}"'
    done = subprocess.run(
        ["bash", "-c", f"{asked}{script}{typed}"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.stdout.split(), done.stderr) == (["tra-a", "tra-b"], "")


@pytest.mark.parametrize("program", SCRIPTS)
def test_every_script_asks_the_program(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", program]) == 0
    assert "jaxbig completion words" in capsys.readouterr().out
