"""Chats as a run's model was trained to see them: by its data's template, or its folder's."""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

import numpy as np

from jaxbig.data.chats import Chats
from jaxbig.data.tokenize.tokenizers import BytePairs
from jaxbig.errors import Refused
from jaxbig.pretrained.side_files import FOLDER
from jaxbig.pretrained.weight_files import read_object
from jaxbig.train.run import Run

Message = Mapping[str, str]
"""What one side says: `role` and `content`."""
ANSWERS = "assistant"
"""The role of the answers in templates of folders."""
TEMPLATE = "chat_template.jinja"
SETTINGS = "tokenizer_config.json"
GENERATION = "generation_config.json"


def is_chat(prompt: Any) -> TypeGuard[Sequence[Message]]:
    """Whether a prompt is the messages of a chat."""
    return isinstance(prompt, list | tuple) and any(isinstance(each, Mapping) for each in prompt)


def answer_role(run: Run) -> str:
    """The role of the run's model in a chat; empty if the run has no template."""
    data = run.experiment.data
    if isinstance(data, Chats):
        return data.answers
    return ANSWERS if folder_template(run.directory / FOLDER) else ""


def chat_tokens(run: Run, messages: Sequence[Message]) -> np.ndarray:
    """The tokens of a chat up to where the next answer begins, [n].

    A run on `Chats` has the template of its data; another that of the folder that its weights came
    from, whose names of special tokens are these tokens, as in transformers.

    Args:
      run: the run.
      messages: `{"role": ..., "content": ...}` each.

    Raises:
      Refused: the run has no template, or a message does not fit it.
    """
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise Refused(f"message {number} must have a role and a content, both text.")
    data = run.experiment.data
    if isinstance(data, Chats):
        return templated(data, messages)
    folder = run.directory / FOLDER
    template = folder_template(folder)
    if not template:
        raise Refused(
            f"{run.directory} has no chat template: its data is not Chats, and no template came "
            f"with its weights: give the prompt as a text."
        )
    tokenizer = getattr(data, "tokenizer", None)
    if not isinstance(tokenizer, BytePairs):
        raise Refused(
            f"the chat template in {folder} needs the tokenizer of its tokenizer.json, which "
            f"{type(data).__name__} does not have."
        )
    return tokenizer.encode_markup(render(template, messages, special_names(folder), folder))


def templated(data: Chats, messages: Sequence[Message]) -> np.ndarray:
    """The tokens of messages and of the header of an answer, as `Chats` has them, [n]."""
    tokens, _ = data.joined([(each["role"], each["content"]) for each in messages])
    header = data.tokenizer.encode(data.header.replace("{role}", data.answers))
    return np.concatenate([[data.tokenizer.end], tokens, header])


def folder_template(folder: Path) -> str:
    """The chat template of a folder as Hugging Face has them; empty if there is none."""
    if (folder / TEMPLATE).is_file():
        return read_text(folder / TEMPLATE)
    for name in ("chat_template.json", SETTINGS):
        found = settings(folder / name).get("chat_template")
        if isinstance(found, list):  # of several uses, by name
            named = {each.get("name"): each for each in found if isinstance(each, Mapping)}
            found = named.get("default", {}).get("template")
        if isinstance(found, str) and found:
            return found
    return ""


def special_names(folder: Path) -> dict[str, str]:
    """The special tokens that a folder names, such as `bos_token`."""
    found = settings(folder / "special_tokens_map.json") | settings(folder / SETTINGS)
    names = {}
    for key, value in found.items():
        name = value.get("content") if isinstance(value, Mapping) else value
        if key.endswith("_token") and isinstance(name, str):
            names[key] = name
    return names


def ends(run: Run) -> list[int]:
    """The tokens at which texts end by the folder that the run's weights came from."""
    found = settings(run.directory / FOLDER / GENERATION).get("eos_token_id")
    numbers = found if isinstance(found, list) else [found]
    return [number for number in numbers if isinstance(number, int)]


def settings(file: Path) -> dict[str, Any]:
    """The JSON object of a file; empty if there is none."""
    return read_object(file) if file.is_file() else {}


def read_text(file: Path) -> str:
    """The content of a file; raises `Refused` if it is no text."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{file} cannot be read: {error}.") from None


def render(
    template: str, messages: Sequence[Message], names: Mapping[str, str], folder: Path
) -> str:
    """The text of a chat by a template of Jinja, which can reach nothing but what is given here.

    Args:
      template: with the variables and functions that transformers has for it.
      messages: of the chat.
      names: of special tokens.
      folder: for messages.

    Raises:
      Refused: Jinja is not installed, or the template is wrong or refuses the messages.
    """
    try:
        import jinja2  # here: optional
        from jinja2.ext import Extension
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise Refused(
            f"the chat template in {folder} needs jinja2, which is not installed: pip install "
            f"'jaxbig[text]'."
        ) from None

    class Generation(Extension):
        """Blocks that mark answers, for training; here they are their content."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = today
    try:
        return environment.from_string(template).render(
            messages=[dict(each) for each in messages], add_generation_prompt=True, **names
        )
    except Exception as error:  # a template may raise anything
        text = " ".join(str(error).split())[:300]
        raise Refused(f"the chat template in {folder} cannot be filled in: {text}.") from None


def today(format: str) -> str:
    """The date and time here, which some templates put in."""
    return datetime.datetime.now().strftime(format)


def to_json(value: Any, indent: int | None = None, **given: Any) -> str:
    """JSON in a template; Jinja's own writes `<` and `&` otherwise."""
    return json.dumps(value, ensure_ascii=False, indent=indent, **given)
