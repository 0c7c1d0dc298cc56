"""The README and the pages: every command and snippet in them is run, or parsed where it says so.

A fence of `bash` or `python` is run, one after another in a folder with files of each kind of data,
in this process, with few steps. A title in its first line changes that:

- `python title="NAME.py"` is written to that file, which later ones use;
- `python title="KERAS"`, any other name, is another library's: it is Python, and not run;
- `bash title="needs ..."` and `bash title="takes ..."` are parsed by the real command line alone.
"""

import ast
import dataclasses
import importlib
import json
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest
from support.experiments import ROOT
from support.programs import share_programs
from support.sample_files import write_all

import jaxbig as jb
from jaxbig.cli import main as command_line
from jaxbig.cli.commands import COMMANDS
from jaxbig.config.experiment import Experiment
from jaxbig.launch import common
from jaxbig.program.program import Program
from jaxbig.tools import replay_step
from jaxbig.train import evaluate, trainer
from jaxbig.train import run as api_run

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RECIPES = sorted((ROOT / "docs" / "recipes").glob("*.py"))
FENCE = re.compile(r"^( *)```(.*?)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
HEAD = re.compile(r'(bash|python|json|text)( title="([^"]+)")?')
INLINE = re.compile(r"`((?:[A-Z_]+=\S+ )*(?:jaxbig |python -m jaxbig\.)[^`]+)`")
PLACEHOLDERS = {
    "NAME": "digits_convnet",
    "EXPERIMENT": "digits_convnet",
    "IMAGE": "image",
    "ZONE": "zone",
    "DIR": "runs/x",
    "N": "4",
}
RUN_ELSEWHERE = {"data.md"}
"""Pages whose commands test_readme.py and test_own_data.py run."""
BY_SECTION = {"use.md"}
"""Long pages, each of whose sections runs by itself, beside the others."""
SHORT = {
    "steps": 4,
    "evaluate_every": 2,
    "evaluate_batches": 2,
    "checkpoint_every": 2,
    "log_every": 2,
}
LAUNCHERS = {"local": "Local", "slurm": "Slurm", "gke": "Gke", "tpu_vm": "TpuVm", "sky": "Sky"}


class Fence(NamedTuple):
    """A block of code."""

    language: str
    title: str
    code: str

    @property
    def is_run(self) -> bool:
        return not self.title

    @property
    def is_file(self) -> bool:
        return self.language == "python" and self.title.endswith(".py")


def fences(page: Path, section: str = "") -> list[Fence]:
    """The blocks of code of a page, or of a section, with files that it includes."""
    found = []
    text = sections(page)[section] if section else page.read_text()
    for indent, head, code in FENCE.findall(text):
        match = HEAD.fullmatch(head)
        assert match, f"{page}: the fence ```{head} needs a language, and at most a title"
        lines = [line.removeprefix(indent) for line in code.splitlines(keepends=True)]
        code = re.sub(
            r'--8<-- "(.+)"\n', lambda name: (ROOT / "docs" / name[1]).read_text(), "".join(lines)
        )
        found.append(Fence(match[1], match[3] or "", code))
    return found


def sections(page: Path) -> dict[str, str]:
    """The text of each section of a page by its heading; what comes before the first has none."""
    parts = re.split(r"^## (.+)\n", page.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def commands(code: str) -> Iterator[list[str]]:
    """The commands of a block of bash, as words; comments are none."""
    for line in code.replace("\\\n", " ").splitlines():
        for part in re.split(r" && ", line):
            if words := shlex.split(part, comments=True):
                yield words


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in, with files of each kind; modules that are imported from it go after."""
    write_all(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(f"{tmp_path}/"):
            del sys.modules[name]


def write_file(fence: Fence) -> None:
    Path(fence.title).write_text(fence.code)
    importlib.invalidate_caches()


# -- what is there


def test_readme_has_the_first_snippet_of_the_page_on_python() -> None:
    [first, *_] = [fence for fence in fences(ROOT / "docs" / "python.md") if fence.is_run]
    assert first in fences(ROOT / "README.md")


def test_readme_is_short_and_begins_with_its_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    two = [fence for fence in fences(ROOT / "README.md") if fence.language == "bash"][:2]
    assert [words[-1] for fence in two for words in commands(fence.code)][-1] == "pytest"
    assert two[0].code.endswith("jaxbig train digits_convnet\n")


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("*.md")], ids=lambda page: page.name)
def test_link_to_a_file_leads_to_one(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


GROUPS = ("models", "objectives", "data", "optim", "evaluators")


@pytest.mark.parametrize("group", ["", *GROUPS])
def test_every_public_name_has_an_entry_in_the_api_pages(group: str) -> None:
    page = (ROOT / "docs" / "api" / f"{group or 'experiment'}.md").read_text()
    package = importlib.import_module(f"jaxbig.{group}" if group else "jaxbig")
    short = f"jb.{group}." if group else "jb."
    names = {name for name in package.__all__ if name not in GROUPS}
    assert names == set(re.findall(rf"heading: {re.escape(short)}(\w+)", page))


@pytest.mark.parametrize("command", COMMANDS)
def test_page_on_experiments_names_every_command(command: str) -> None:
    assert f"| `{command}` |" in (ROOT / "docs" / "experiments.md").read_text()


def test_drawing_has_every_room() -> None:
    drawing = (ROOT / "docs" / "architecture.svg").read_text()
    rooms = {path.name for path in (ROOT / "jaxbig").iterdir() if path.is_dir()}
    rooms -= {"__pycache__", "experiments"}
    assert rooms <= set(re.findall(r'class="name">(\w+)<', drawing))


# -- what is parsed


def parse(words: Sequence[str]) -> None:
    """Parses a command by what would run it; raises if that would refuse it."""
    words = [PLACEHOLDERS.get(word, word) for word in words]
    if words[0] == "srun":
        words = words[words.index("jaxbig") :]
    while "=" in words[0]:
        words = words[1:]
    if words[0] == "jaxbig":
        word, rest = command_line.split(words[1:])
        if rest and "--help" not in rest:
            command_line.load(word).from_arguments(word, rest)
    elif words[:2] == ["python", "-m"]:
        launch(words)
    elif words[0] == "python":
        assert Path(words[1]).exists() or (ROOT / words[1]).exists()
    elif words[:2] == ["pip", "install"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for extra in re.findall(r"\[(.*)\]", words[-1]):
            assert set(extra.split(",")) <= set(project["optional-dependencies"])
    else:
        assert words[0] in ("python3", ".", "pytest"), f"what runs {words[0]}?"


def launch(words: Sequence[str]) -> None:
    """Prints what a launcher would submit."""
    module = words[2]
    name = LAUNCHERS[module.removeprefix("jaxbig.launch.")]
    kind = getattr(importlib.import_module(module), name)
    assert common.main(kind, module, list(words[3:])) == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_not_run_is_parsed_by_the_real_command_line(page: Path, folder: Path) -> None:
    for fence in fences(page):
        if fence.language == "python":
            ast.parse(fence.code)
        if fence.language == "json":
            assert all(json.loads(line) for line in fence.code.splitlines())
        if fence.is_file:
            write_file(fence)
    for fence in fences(page):
        if fence.language == "bash" and not fence.is_run:
            assert re.match("needs |takes ", fence.title), fence.title
            for words in commands(fence.code):
                parse(words)
    for text in INLINE.findall(page.read_text()):
        if "..." not in text and "PATTERN" not in text and "FILE" not in text:
            parse(shlex.split(text))


# -- what is run


def short(experiment: Experiment) -> Experiment:
    """The same experiment in few steps."""
    return dataclasses.replace(experiment, **SHORT)


@pytest.fixture(scope="module")
def shared() -> Callable[..., Program]:
    """`make_program` whose programs all pages share."""
    return share_programs()


@pytest.fixture
def few_steps(shared: Callable[..., Program], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is trained makes few steps, on one device unless its mesh asks for more."""

    def make(experiment: Experiment, devices: Sequence[Any] | None = None) -> Program:
        if experiment.mesh == jb.Mesh() and devices is None:
            devices = jax.devices()[:1]
        return shared(experiment, devices)

    for module in (trainer, evaluate, replay_step, api_run):
        monkeypatch.setattr(module, "make_program", make)
    fit = jb.fit
    monkeypatch.setattr(
        jb,
        "fit",
        lambda experiment, directory, **options: fit(short(experiment), directory, **options),
    )


def run_command(words: Sequence[str]) -> None:
    """Runs a command in this process, which has eight devices."""
    words = [word for word in words if word != "JAX_NUM_CPU_DEVICES=8"]
    if words[:2] == ["jaxbig", "train"] and not {"--help", "--smoke", "--dry-run"} & set(words):
        if "--steps" in words:
            at = words.index("--steps")
            del words[at : at + 2]
        for name, value in SHORT.items():
            words += [f"--{name.replace('_', '-')}", str(value)]
    if words[:2] == ["python", "-m"]:
        launch(words)
        return
    assert words[0] == "jaxbig", f"nothing here runs {words[0]}: give its fence a title"
    try:
        assert command_line.run(words[1:]) == 0, words
    except SystemExit as end:  # of --help
        assert not end.code, words


def what_runs() -> Iterator[Any]:
    """The pages, or the sections of long ones, whose blocks are run."""
    for page in PAGES:
        if page.name in RUN_ELSEWHERE or page.parent.name == "api":
            continue
        for section in sections(page) if page.name in BY_SECTION else [""]:
            name = f"{page.relative_to(ROOT)} {section}".strip()
            yield pytest.param(page, section, id=name.lower().replace(" ", "-"))


@pytest.mark.parametrize("name", BY_SECTION)
def test_sections_have_all_blocks_of_their_page(name: str) -> None:
    page = ROOT / "docs" / name
    found = [fence for section in sections(page) for fence in fences(page, section)]
    assert found == fences(page)


@pytest.mark.slow
@pytest.mark.parametrize(("page", "section"), [*what_runs()])
def test_what_stands_in_a_page_runs(
    page: Path, section: str, folder: Path, few_steps: None
) -> None:
    names: dict[str, Any] = {}
    shared = fences(ROOT / "docs" / "python.md") if page.name == "README.md" else []
    for number, fence in enumerate(fences(page, section)):
        if fence in shared:
            continue  # it is run with that page
        if fence.is_file:
            write_file(fence)
        elif fence.language == "python" and fence.is_run:
            script = Path(f"snippet_{number}.py")
            script.write_text(fence.code)
            names |= runpy.run_path(str(script), init_globals=names)
        elif fence.language == "bash" and fence.is_run:
            for words in commands(fence.code):
                run_command(words)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_recipe_trains_and_predicts(
    recipe: Path, folder: Path, few_steps: None, capsys: pytest.CaptureFixture[str]
) -> None:
    runpy.run_path(str(recipe))["main"]()
    assert capsys.readouterr().out


TOGETHER = {
    "on_digits": """
import own_callback, own_evaluator, own_metric, own_model, own_optimizer


def config():
    return own_model.config().replace(
        metrics=own_metric.config().metrics,
        evaluators=own_evaluator.config().evaluators,
        optimizer=own_optimizer.config().optimizer,
        callbacks=own_callback.config().callbacks,
    )
""",
    "on_waves": """
import own_objective, own_records


def config():
    return own_records.config().replace(objective=own_objective.config().objective)
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TOGETHER)
def test_own_parts_take_part_in_every_command(
    name: str, folder: Path, few_steps: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for recipe in RECIPES:
        shutil.copy(recipe, folder)
    Path("own.py").write_text(f'"""Parts of one\'s own."""\n{TOGETHER[name]}')
    for command in (
        "train own.py --smoke",
        "check own.py --mesh.fsdp 2 --mesh.tensor 2",
        "data inspect own.py",
        "show own.py",
        "plan own.py --topology h100:8",
    ):
        run_command(["jaxbig", *command.split()])
