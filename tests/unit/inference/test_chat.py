"""Chats in `generate`: what a run's model sees of them, where answers end, what is refused."""

import builtins
import dataclasses
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from unit.inference.test_generate import run_of

import jaxbig as jb
from jaxbig.cli import generate as command
from jaxbig.cli.generate import Generate
from jaxbig.data.tokenize.tokenizers import BytePairs
from jaxbig.inference.chat import chat_tokens
from jaxbig.inference.generate import generate
from jaxbig.models.language_model import Decoder
from jaxbig.train.run import Run

RECORDS = jb.data.Synthetic(texts=("text",))
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi <|user|>"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Bye."},
]
ASKED = [{"role": "user", "content": "a"}]
NAMES = ("<end>", "<|s|>", "<|e|>")
TEMPLATE = (
    "{% for each in messages %}\n"
    "{{ '<|s|>' + each['role'][0] + each.content + eos_token }}\n"
    "{%- endfor %}\n"
    "{% if add_generation_prompt %}\n"
    "{{ '<|s|>' }}\n"
    "{%- endif %}\n"
)


def any_run(data: Any, folder: Path) -> Run:
    """A run with data and a folder, whose model nobody asks."""
    experiment: Any = SimpleNamespace(data=data, model=None, objective=None)
    return Run(
        directory=folder,
        experiment=experiment,
        step=1,
        state=None,
        metrics={},
        history=[],
        program=None,  # type: ignore[arg-type]
    )


def byte_pairs(folder: Path) -> BytePairs:
    """A tokenizer of bytes, and of `NAMES` from 256 on."""
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: number for number, character in enumerate(alphabet)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(list(NAMES))
    made.save(str(folder / "tokenizer.json"))
    return BytePairs(file=str(folder / "tokenizer.json"), vocab=259, specials=NAMES)


def imported(folder: Path, files: dict[str, Any]) -> Run:
    """A run with files of the folder that its weights came from; strings are their text."""
    kept = folder / "pretrained"
    kept.mkdir()
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (kept / name).write_text(text)
    data = jb.data.Tokens(records=RECORDS, tokenizer=byte_pairs(folder), batch=1, length=8)
    return any_run(data, folder)


def numbers(tokenizer: BytePairs, *parts: str) -> list[int]:
    """The tokens of texts, and of special tokens by their name."""
    special = tokenizer.special_tokens
    lists = [[special[p]] if p in special else tokenizer.encode(p).tolist() for p in parts]
    return [number for each in lists for number in each]


@pytest.mark.parametrize("role", ["assistant", "bot"])
def test_chat_is_the_beginning_of_the_example_that_was_learned(tmp_path: Path, role: str) -> None:
    data = jb.data.Chats(records=RECORDS, answers=role, batch=1, length=200)
    talk = [{**each, "role": each["role"].replace("assistant", role)} for each in TALK]
    example = data.read({"messages": talk})
    learned = np.flatnonzero(example["mask"])
    begins = [place for place in learned if not example["mask"][place - 1]]
    for count, place in zip((2, 4), begins, strict=True):
        tokens = chat_tokens(any_run(data, tmp_path), talk[:count])
        assert tokens.tolist() == example["inputs"][: place + 1].tolist()


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json", "in settings"])
def test_template_of_the_folder_puts_in_special_tokens(tmp_path: Path, name: str) -> None:
    settings: dict[str, Any] = {"eos_token": {"content": "<|e|>"}}
    files: dict[str, Any] = {"tokenizer_config.json": settings}
    if name == "in settings":
        settings["chat_template"] = [
            {"name": "tools", "template": "x"},
            {"name": "default", "template": TEMPLATE},
        ]
    else:
        files[name] = {"chat_template": TEMPLATE} if name.endswith("json") else TEMPLATE
    run = imported(tmp_path, files)
    tokenizer: Any = run.experiment.data
    wanted = numbers(tokenizer.tokenizer, "<|s|>", "sx", "<|e|>", "<|s|>", "uy", "<|e|>", "<|s|>")
    talk = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
    assert chat_tokens(run, talk).tolist() == wanted


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("", "has no chat template"),
        ("{{ raise_exception('system <b> first') }}", "filled in: system <b> first"),
        ("{% for each in %}", "cannot be filled in: "),
        ("{{ messages.__class__.__mro__ }}", "cannot be filled in: .*unsafe"),
        ("{{ messages.append(1) }}", "cannot be filled in: .*"),
    ],
)
def test_chat_without_a_template_that_takes_it_is_refused(
    tmp_path: Path, template: str, message: str
) -> None:
    run = imported(tmp_path, {"chat_template.jinja": template} if template else {})
    with pytest.raises(jb.Refused, match=message):
        chat_tokens(run, ASKED)


def test_message_without_a_role_is_refused(tmp_path: Path) -> None:
    with pytest.raises(jb.Refused, match="message 1 must have a role and a content, both text"):
        chat_tokens(any_run(None, tmp_path), [*ASKED, {"content": "b"}])


def test_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = imported(tmp_path, {"chat_template.jinja": TEMPLATE})
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(jb.Refused, match=r"needs jinja2, .*: pip install 'jaxbig\[text\]'"):
        chat_tokens(run, ASKED)


def test_answer_of_an_imported_run_ends_at_its_folders_end_tokens(tmp_path: Path) -> None:
    files = {"tokenizer_config.json": {"eos_token": "<|e|>"}, "chat_template.jinja": TEMPLATE}
    run = imported(tmp_path, files)
    model = Decoder(vocab=259, width=8, depth=1, heads=1)
    made = run_of(model, run.experiment.data)
    made = dataclasses.replace(made, directory=tmp_path)
    tokens = chat_tokens(made, ASKED)
    [whole] = generate(made, [tokens], max_tokens=8, temperature=0)
    texts = generate(made, ASKED, max_tokens=8, temperature=0)
    assert texts == generate(made, [ASKED], max_tokens=8, temperature=0)
    assert len(texts) == 1
    settings = {"eos_token_id": [258, int(whole[3])]}
    (tmp_path / "pretrained" / "generation_config.json").write_text(json.dumps(settings))
    [cut] = generate(made, [tokens], max_tokens=8, temperature=0)
    assert cut.tolist() == whole[: whole.tolist().index(whole[3])].tolist()


@pytest.mark.parametrize("options", [{}, {"system": "s", "role": "human"}])
def test_loop_gives_the_model_all_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str]
) -> None:
    lines = iter(["one", "", "two"])

    def ask(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    seen: list[Any] = []

    def answer(run: Run, prompts: list[Any], *, show: Any, **given: Any) -> None:
        seen.append(list(prompts[0]))
        show(0, f"answer {len(seen)}")

    monkeypatch.setattr(builtins, "input", ask)
    monkeypatch.setattr(command, "generate", answer)
    run = any_run(jb.data.Chats(records=RECORDS, batch=1, length=8), tmp_path)
    Generate(run="x", chat=True, **options).answer(run)
    role = options.get("role", "user")
    first = [{"role": "system", "content": "s"}] if options else []
    first.append({"role": role, "content": "one"})
    second = [
        *first,
        {"role": "assistant", "content": "answer 1"},
        {"role": role, "content": "two"},
    ]
    assert seen == [first, second]


def test_loop_without_a_template_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = any_run(jb.data.Tokens(records=RECORDS, batch=1, length=8), tmp_path)
    caplog.set_level(logging.WARNING, "jaxbig")
    Generate(run="x", chat=True).check_plain(run)
    assert "has no chat template" in caplog.text
    with pytest.raises(jb.Refused, match=r"--system: .* has no chat template, and so no roles"):
        Generate(run="x", chat=True, system="s").check_plain(run)


def test_roles_without_a_chat_are_refused() -> None:
    with pytest.raises(jb.Refused, match="--role is of a chat: give --chat too"):
        Generate(run="x", role="human", prompt=("a",))()
