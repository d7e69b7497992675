"""`thistledown completion`: a script that completes commands, options and presets in a shell."""

import argparse
import shlex
from collections.abc import Iterator, Mapping, Sequence

SHELLS = ("bash", "zsh")
BASH = """\
_thistledown() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} words
    case ${{COMP_WORDS[1]}} in
{cases}
        *) words={commands} ;;
    esac
    [ "$COMP_CWORD" -gt 1 ] || words={commands}
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    [ "$COMP_CWORD" -gt 1 ] && [ "${{current#-}}" = "$current" ] && COMPREPLY+=($(compgen -f -- "$current"))
    return 0
}}
complete -o filenames -F _thistledown thistledown"""
ZSH = "autoload -U +X bashcompinit && bashcompinit"  # with which zsh takes what bash takes


def completion(shell: str, commands: Mapping[str, argparse.ArgumentParser], presets: Sequence[str]) -> str:
    """Return the script for a shell, to be read by it: `source <(thistledown completion bash)`. Commands that take a
    preset complete the names of `presets`, and all of them files. `commands` are the parsers of commands by name."""
    cases = [
        f"        {name}) words={shlex.quote(' '.join([*options(command), *_presets(command, presets)]))} ;;"
        for name, command in commands.items()
    ]
    script = BASH.format(cases="\n".join(cases), commands=shlex.quote(" ".join([*commands, "--help", "--version"])))
    return f"{ZSH}\n{script}" if shell == "zsh" else script


def options(command: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the options of a command, and the words that may follow it."""
    for action in command._actions:
        yield from action.option_strings
        if isinstance(action.choices, dict | tuple) and not action.option_strings:
            yield from action.choices


def _presets(command: argparse.ArgumentParser, presets: Sequence[str]) -> Sequence[str]:
    return presets if any(action.dest == "preset" for action in command._actions) else ()
