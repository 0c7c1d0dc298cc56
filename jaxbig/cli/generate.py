"""`jaxbig generate`: texts that a run's model writes after prompts, or translations."""

import contextlib
import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import Any

from jaxbig.cli.restored_run import RestoredRunCommand
from jaxbig.config.options import Flag
from jaxbig.distributed.multihost import refuse_started_together
from jaxbig.errors import Refused
from jaxbig.inference.chat import answer_role
from jaxbig.inference.decoding import translates
from jaxbig.inference.generate import generate
from jaxbig.system.exit_codes import DONE
from jaxbig.train.run import Run

log = logging.getLogger("jaxbig")
USER = "user"
STDIN = "-"
"""The path that stands for standard input."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate(RestoredRunCommand):
    """Texts that a run's language model writes after prompts, or translations of its translator.

    A text depends on the seed, its prompt and the options alone, and not on the other prompts.
    """

    prompt: tuple[str, ...] = ()
    """Texts to continue, or to translate."""
    prompt_file: tuple[str, ...] = ()
    """Files with a prompt each, or - for standard input."""
    lines: str = ""
    """A file with a prompt on each line, or - for standard input; blank lines are none."""
    chat: Flag = False
    """Answer line by line, each after all lines before, until Ctrl-D. What the model sees is as the
    chat template of the run's data has it, or that of the folder it was imported from."""
    system: str = ""
    """What the role system says before the chat."""
    role: str = USER
    """The role of your lines in the chat, as the model was trained on."""
    seed: int = 0
    """Of the random choices."""
    max_tokens: int = 100
    """The most tokens of each text."""
    temperature: float | None = None
    """Divides the logits: below 1, likelier tokens are preferred; 0: always the likeliest. None: 1
    for a language model, 0 for a translator."""
    top_k: int = 0
    """Draw from the k likeliest tokens; 0: from all."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability."""
    min_p: float = 0.0
    """Draw from the tokens with this share of the likeliest one's probability or more."""
    repetition_penalty: float = 1.0
    """Above 1: makes tokens that a text has already less likely."""
    beams: int = 1
    """Above 1: how many unfinished texts are continued at once (beam search)."""
    length_penalty: float = 1.0
    """The power of the length by which a beam's logarithmic probability is divided."""
    stop: tuple[str, ...] = ()
    """A text ends before the first of these strings, or at the special token of that name."""
    batch: int = 8
    """How many texts each device writes at once. Another number may round differently."""
    cache: int = 256
    """How many tokens the model's cache holds at first; it doubles when it is full."""
    reproducible: Flag = False
    """Each device holds the whole model, and the texts are the same over any mesh; always so where
    a mesh splits rows only."""
    json: Flag = False
    """Print a line of JSON for each prompt, with `prompt` and `text`, and nothing else there."""

    def __call__(self) -> int:
        refuse_started_together("generate")
        if self.chat and (self.prompt or self.prompt_file or self.lines):
            raise Refused("chat reads its prompts one by one: leave --chat out, or the prompts.")
        if not self.chat and (given := self.roles()):
            raise Refused(f"{given} is of a chat: give --chat too.")
        prompts = None if self.chat else self.prompts()
        run = self.restored()
        try:
            if prompts is None:
                self.answer(run)
            elif len(prompts) == 1 and not self.json:
                self.stream(run, prompts[0])
            else:
                self.print_all(run, prompts)
        except KeyboardInterrupt:
            if not self.json:
                print(flush=True)  # a shell's prompt begins a line
            raise
        return DONE

    def prompts(self) -> list[str]:
        """All prompts, in the order of the options."""
        prompts = list(self.prompt) + [read(path) for path in self.prompt_file]
        if self.lines:
            prompts += [line for line in read(self.lines).split("\n") if line.strip()]
        if not prompts:
            raise Refused(
                "generate needs a prompt: give --prompt TEXT, --prompt-file FILE, --lines FILE or "
                "--chat."
            )
        return prompts

    def write(self, run: Run, prompts: list[Any], **given: Any) -> list[str]:
        """`generate` with the options of the command."""
        names = (
            "seed",
            "max_tokens",
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "repetition_penalty",
            "beams",
            "length_penalty",
            "stop",
            "batch",
            "cache",
        )
        options = {name: getattr(self, name) for name in names}
        options["reproducible"] = True if self.reproducible else None
        return generate(run, prompts, **options, **given)

    def stream(self, run: Run, prompt: str) -> None:
        """Prints a prompt and its text while it is written; of a translator, the text alone."""
        shown = not translates(run.experiment.model)

        def show(number: int, piece: str) -> None:
            nonlocal shown
            if shown:
                print(prompt, end="")
                shown = False
            print(piece, end="", flush=True)

        [text] = self.write(run, [prompt], show=show)
        if shown and not text:
            print(prompt, end="")
        print(flush=True)

    def print_all(self, run: Run, prompts: list[str]) -> None:
        """Prints the texts of several prompts, or a line of JSON each."""
        no_prompt = translates(run.experiment.model)
        for number, (prompt, text) in enumerate(
            zip(prompts, self.write(run, prompts), strict=True)
        ):
            if self.json:
                print(json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False), flush=True)
            elif no_prompt:
                print(text, flush=True)
            else:
                rule = f"--- {number + 1} of {len(prompts)} "
                print(f"{rule:-<40}\n{prompt}{text}", flush=True)

    def answer(self, run: Run) -> None:
        """Reads lines and prints an answer after each; the model sees all that came before."""
        if translates(run.experiment.model):
            raise Refused("a translator has no chats: leave --chat out, and give --lines -.")
        answers = answer_role(run)
        if not answers:
            self.check_plain(run)
        messages = [{"role": "system", "content": self.system}] if self.system else []
        said = ""
        while True:
            try:
                line = input("> " if sys.stdin.isatty() else "")
            except EOFError:
                return
            if not line:
                continue
            messages.append({"role": self.role, "content": line})
            said += f"{line}\n"
            pieces: list[str] = []

            def show(number: int, piece: str, pieces: list[str] = pieces) -> None:
                pieces.append(piece)
                print(piece, end="", flush=True)

            # Ctrl-C ends the answer, and again at the next line the command
            with contextlib.suppress(KeyboardInterrupt):
                self.write(run, [messages if answers else said], show=show)
            print(flush=True)
            messages.append({"role": answers, "content": "".join(pieces)})
            said += "".join(pieces).rstrip("\n") + "\n"

    def roles(self) -> str:
        """The option that names a role, if one was given."""
        if self.system:
            return "--system"
        return "--role" if self.role != USER else ""

    def check_plain(self, run: Run) -> None:
        """Says that a run has no chat template; raises `Refused` if an option needs one."""
        if given := self.roles():
            raise Refused(f"{given}: {run.directory} has no chat template, and so no roles.")
        log.warning("%s has no chat template: the model continues the plain lines", run.directory)


def read(path: str) -> str:
    """The text of a file, or of standard input for `-`."""
    try:
        file = Path(path).expanduser()
        content = sys.stdin.buffer.read() if path == STDIN else file.read_bytes()
        return content.decode().replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        name = "standard input" if path == STDIN else path
        raise Refused(f"prompts of {name} cannot be read: {reason}.") from error
