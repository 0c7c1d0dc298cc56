"""Data set of questions on Python functions, which their signatures and docstrings answer.

The functions are those of pydoc.py. A context is a signature and a docstring; an answer is the
default, the type or the meaning of a parameter, what is returned, or what the function does. Hashes
choose the questions on a function, and their wording.
"""

import ast
import dataclasses
import re
from collections.abc import Iterator, Sequence

from jaxbig.constraints import PositiveInt
from jaxbig.data.builtin.pydoc import JaxbigPydoc, functions_of
from jaxbig.data.builtin.pyimports import number_of
from jaxbig.data.core.dataset import Record, Records
from jaxbig.data.questions import Questions
from jaxbig.data.records.tfds_builder import identity, prepared
from jaxbig.data.tokenize.tokenizers import BytePairs, Tokenizer

LONGEST = 400  # characters of a context
LONGEST_ANSWER = 100
MOST = 3  # questions on a function
WORDINGS = {
    "default": (
        "what is the default of {}?", "which value has {} if it is not given?",
        "what is {} when it is left out?", "by default, {} is what?",
    ),
    "type": (
        "what is the type of {}?", "of which type is {}?", "what kind of value is {}?",
        "as what is {} to be passed?",
    ),
    "meaning": (
        "what does the parameter {} mean?", "what is {}?", "what is {} for?",
        "what does {} stand for?", "how is {} described?",
    ),
    "result": (
        "what does {} return?", "what is the result of {}?", "what comes out of {}?",
        "what does one get from {}?",
    ),
    "purpose": (
        "what does {} do?", "what is {} for?", "what is the purpose of {}?",
        "why would one call {}?",
    ),
}  # fmt: skip
UP_TO = r"\S.*?(?=\s*[.;]?(?:[.;]\s|\s*\Z|\n\s*\n|\n *\*{0,2}\w+(?: \(.*\))? ?:))"
SENTENCE = re.compile(UP_TO, re.S)
"""A sentence, or less: up to an empty line, or to the next parameter."""
SECTION = re.compile(
    r"^(Args|Arguments|Parameters|Returns):?\n(?:-+\n)?(.*?)(?=^\w+:?\n[- ]|\Z)", re.M | re.S
)
"""The title and the content of a section, in Google's style or NumPy's."""
ENTRIES = (
    re.compile(rf"^ +\*{{0,2}}(\w+)(?: \(([^)\n]+)\))?:\s+({UP_TO})", re.M | re.S),
    re.compile(rf"^(\w+) : ([^\n]+)\n +({UP_TO})", re.M | re.S),
)
"""A parameter, its type and its meaning, in Google's style and in NumPy's."""
Asked = tuple[str, str, tuple[int, int]]
"""The kind of a question, what it is about, and where its answer starts and ends."""


def asked_of(signature: str) -> Iterator[Asked]:
    """Yields what a signature says of its parameters."""
    tree = ast.parse(f"def {signature}: ...").body[0]
    assert isinstance(tree, ast.FunctionDef)
    given = tree.args
    plain = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(plain) - len(given.defaults)) + given.defaults + given.kw_defaults
    for parameter, default in zip([*plain, *given.kwonlyargs], defaults, strict=True):
        for kind, node in (("default", default), ("type", parameter.annotation)):
            if node is not None:
                start = node.col_offset - len("def ")
                yield kind, parameter.arg, (start, start + len(ast.unparse(node)))


def asked_in(doc: str, name: str) -> Iterator[Asked]:
    """Yields what the docstring of a function says of it, its parameters and its result."""
    if first := SENTENCE.match(doc):
        yield "purpose", name, first.span()
    for section in SECTION.finditer(doc):
        found = [match for entry in ENTRIES for match in entry.finditer(doc, *section.span(2))]
        if section[1] == "Returns":
            of_result = found[0].span(3) if found else None
            sentence = SENTENCE.search(doc, *section.span(2))
            if of_result or sentence:
                yield "result", name, of_result or sentence.span()  # type: ignore[union-attr]
            continue
        for match in found:
            yield "meaning", match[1], match.span(3)
            if match[2]:
                yield "type", match[1], match.span(2)


def questions(signature: str, doc: str) -> list[Record]:
    """Records of questions on a function, at most `MOST`; none if its context is too long."""
    context = f"{signature}\n{doc}"
    if len(context) > LONGEST or not context.isascii():
        return []
    found = {(kind, subject): span for kind, subject, span in asked_of(signature)}
    before = len(signature) + 1
    for kind, subject, (start, end) in asked_in(doc, signature.partition("(")[0]):
        found.setdefault((kind, subject), (start + before, end + before))
    records = []
    for (kind, subject), (start, end) in found.items():
        number = number_of(f"{context} {kind} {subject}")
        wording = WORDINGS[kind][number % len(WORDINGS[kind])]
        answers = {"text": [context[start:end]], "answer_start": [start]}
        record = {"question": wording.format(subject), "context": context, "answers": answers}
        if end - start <= LONGEST_ANSWER:
            records.append((number, record))
    records.sort(key=lambda pair: pair[0])
    return [record for _, record in records[:MOST]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FunctionQuestions(Records):
    """Records of `PyQuestions`: `question`, `context` and `answers`, as of SQuAD.

    Of the functions held out those are left out whose source or docstring occurs in training.
    """

    def prepare(self) -> str:
        return identity(prepared(JaxbigPydoc))

    def open(self, split: str) -> Sequence[Record]:
        functions = functions_of("train")
        if split == "eval":
            codes = {function.code for function in functions}
            docs = {function.doc for function in functions}
            functions = [
                function
                for function in functions_of("eval")
                if function.code not in codes and function.doc not in docs
            ]
        contexts = dict.fromkeys((function.signature, function.doc) for function in functions)
        return [record for context in contexts for record in questions(*context)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PyQuestions(Questions):
    """Questions on functions of Python's standard library and of packages, answered by a part of
    their signatures and docstrings."""

    records: Records = FunctionQuestions()
    """Where the records come from."""
    length: PositiveInt = 128
    question_length: PositiveInt = 24
    tokenizer: Tokenizer = BytePairs(vocab=2_048, specials=("<end>",))
    """Converts text to tokens."""
