"""The language of the code: plain words of the field, one statement a line, no named lambdas.

`python tests/unit/test_language.py [PATH ...]` lists what would be refused.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("jaxbig", "experiments", "launch", "benchmarks", "tests")
FILES = [
    *ROOT.glob("*.md"),
    *(file for name in FOLDERS for file in (ROOT / name).rglob("*.py")),
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "docs").rglob("*.py"),
]
BANNED = {
    "told": "reported, logged, returned",
    "tells": "reports, shows",
    "anew": "again, re-...",
    "begun": "started",
    "mend(s|ed|ing)?": "fix",
    "befall(s|en)?": "happens to",
    "so manyth": "k-th",
    "so many": "N, this many",
    "(go|goes|went|going) on": "continue, resume",
    "go_on": "run, resume",
    "made[ _-]up": "synthetic",
    "perceptrons?": "MLP",
    "siblings?": "shrunken copy",
    "lifelines?": "peer monitor",
    "blame(s|d)?": "name",
    "pace": "throughput, rate",
    "verbs?": "command",
    "holders?": "owner (of the lock)",
    "in pieces": "sharded, chunked",
    "whoever": "the caller, the reader",
    "(for|of|by|to|from) who": "the user, the process, ...",
    "hears?": "receives, is notified",
    "lies": "is, is stored, is inaccurate",
    "alike": "equally, the same way",
    "thereof|therein|thereby|hither|thither|nought": "plainer words",
    "(colour|grey|centre|neighbour|behaviour|favour|honour)(s|ed|ing)?": "US spelling",
    "(initialis|normalis|optimis|serialis|tokenis|synchronis|recognis)(?!m)\\w+": "US spelling",
}
PATTERN = re.compile(
    "|".join(rf"(?<![A-Za-z])(?:{word})(?![A-Za-z])" for word in BANNED), re.IGNORECASE
)


def words(name: str) -> str:
    """`AName_of_two` as separate words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ")


def banned(text: str) -> list[str]:
    """The banned words in a text or in the names it contains, in order."""
    return [match[0] for match in PATTERN.finditer(text)] or [
        match[0] for match in PATTERN.finditer(words(text))
    ]


def tuple_assignments(tree: ast.AST) -> Iterator[int]:
    """Lines that assign several unrelated values at once; a swap is allowed."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
            continue
        for target in node.targets:
            if not isinstance(target, ast.Tuple) or len(target.elts) < 2:
                continue
            left = {ast.unparse(each) for each in target.elts}
            right = {ast.unparse(each) for each in node.value.elts}
            if left != right:
                yield node.lineno


def named_lambdas(tree: ast.AST) -> Iterator[int]:
    """Lines that give a lambda a name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr):
            value = node.value
            if isinstance(value, ast.Call) and ast.unparse(value.func) == "property":
                value = value.args[0]
            if isinstance(value, ast.Lambda):
                yield node.lineno


def faults(text: str, python: bool) -> list[str]:
    """What is refused in a file, as `line N: what`."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        found += [f"line {number}: {word!r}" for word in banned(line)]
        if python and len(line) > 100:
            found.append(f"line {number}: {len(line)} columns")
    if python:
        tree = ast.parse(text)
        found += [
            f"line {number}: several values assigned at once" for number in tuple_assignments(tree)
        ]
        found += [f"line {number}: a lambda with a name" for number in named_lambdas(tree)]
    return found


def relative(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_file_has_no_banned_word_or_packed_line(file: Path) -> None:
    if file != Path(__file__):
        assert not faults(file.read_text(), file.suffix == ".py")


@pytest.mark.parametrize(
    "text",
    [
        "# it is told",
        "def go_on(): pass",
        "x = 'so many steps'",
        "class MadeUp: pass",
        "a, b = 1, 2",
        "f = lambda: 1",
    ],
)
def test_fault_is_found(text: str) -> None:
    assert faults(text, True)


@pytest.mark.parametrize(
    "text", ["a, b = b, a", "a, b = divmod(7, 2)", "x = sorted(y, key=lambda z: z)"]
)
def test_plain_line_passes(text: str) -> None:
    assert not faults(text, True)


if __name__ == "__main__":
    total = 0
    for given in sys.argv[1:] or FOLDERS:
        path = Path(given)
        for each in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            for fault in faults(each.read_text(), each.suffix == ".py"):
                print(f"{each}: {fault}")
                total += 1
    print(total, "faults")
