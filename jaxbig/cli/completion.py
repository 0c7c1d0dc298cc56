"""`jaxbig completion`: prints what makes a shell complete commands, experiments and options."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, Self

import tyro

from jaxbig.cli.command import Command
from jaxbig.cli.commands import COMMANDS, load, split, takes_experiment
from jaxbig.config.experiment_files import available
from jaxbig.errors import Refused
from jaxbig.system.exit_codes import DONE

SCRIPTS = {
    "bash": """
_jaxbig() {
    local IFS=$'\\n' word="${COMP_WORDS[COMP_CWORD]}"
    COMPREPLY=($(compgen -W "$(jaxbig completion words "${COMP_WORDS[@]:1:COMP_CWORD}" \\
        2>/dev/null)" -- "$word"))
}
complete -o default -F _jaxbig jaxbig
""",
    "zsh": """
_jaxbig() {
    local -a found
    found=(${(f)"$(jaxbig completion words "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    (( $#found )) && compadd -a found || _files
}
compdef _jaxbig jaxbig
""",
    "fish": """
function _jaxbig
    jaxbig completion words (commandline -opc)[2..] (commandline -ct) 2>/dev/null
end
complete -c jaxbig -a '(_jaxbig)'
""",
}
"""For each shell, a function that asks `jaxbig completion words` what can come next."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion(Command):
    """Shell completion: add `eval "$(jaxbig completion bash)"` to your .bashrc; also zsh, fish."""

    program: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """The shell: bash, zsh or fish (there: `jaxbig completion fish | source`)."""
    words: tyro.conf.Suppress[tuple[str, ...]] = ()

    @classmethod
    def from_arguments(cls, word: str, arguments: Sequence[str]) -> Self:
        if arguments[:1] == ["words"]:
            return cls(program="bash", words=tuple(arguments[1:]))
        return super().from_arguments(word, arguments)

    def __call__(self) -> int:
        if not self.words:
            script = SCRIPTS[self.program].strip()
            return self.emit({"script": script}) if self.json else print(script) or DONE
        for each in candidates(self.words):
            print(each)
        return DONE


def candidates(words: Sequence[str]) -> list[str]:
    """What can stand for the last of a command line's words; none where it is a file, or wrong.

    words: those after the program's name; the last one may be incomplete, or "".
    """
    *given, last = words
    groups = [name.split() for name in COMMANDS]
    found = [name[len(given)] for name in groups if name[:-1][: len(given)] == given]
    try:
        word, arguments = split(words)
        if len(arguments) == 1 and takes_experiment(word) and not last.startswith("-"):
            found = sorted(available())
        elif arguments:
            found = load(word).completions(arguments)
    except Refused:
        pass
    return [each for each in dict.fromkeys(found) if each.startswith(last)]
