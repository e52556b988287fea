"""Completion for bash, read off an argparse parser: subcommands, options, choices; file names for the rest."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator

_SCRIPT = """\
# Completion of {prog} for bash; made by `{prog} completion`.
{function}() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD - 1]}} path= word words=
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$path/$word" in {paths}) path=$path/$word ;; esac
    done
    COMPREPLY=()
    case "$path $prev" in
{values}
    esac
    case "$path" in
{rows}
    esac
    # What does not begin with a dash and is no subcommand is a file: bash completes that by itself.
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}}
complete -o default -F {function} {prog}
"""


def bash(parser: argparse.ArgumentParser) -> str:
    """The script that /usr/share/bash-completion/completions/PROG holds, or that `source <(PROG completion)` reads."""
    rows, values, paths = [], [], []
    for path, words, options in _walk(parser, ""):
        paths.append(path)
        rows.append(f"        {_quoted(path)}) words={shlex.quote(' '.join(words))} ;;")
        for names, choices in options:
            pattern = "|".join(_quoted(f"{path} {name}") for name in names)
            offer = f"mapfile -t COMPREPLY < <(compgen -W {shlex.quote(' '.join(choices))} -- \"$cur\"); " if choices else ""
            values.append(f"        {pattern}) {offer}return ;;")
    return _SCRIPT.format(
        prog=parser.prog,
        function="_" + parser.prog.replace("-", "_"),
        paths="|".join(_quoted(path) for path in paths if path),
        values="\n".join(values),
        rows="\n".join(rows),
    )


def _walk(
    parser: argparse.ArgumentParser, path: str
) -> Iterator[tuple[str, list[str], list[tuple[list[str], list[str]]]]]:
    """(path of subcommands, what may stand next, its options that take a value with their choices), parents first."""
    words: list[str] = []
    options: list[tuple[list[str], list[str]]] = []
    below: list[tuple[str, argparse.ArgumentParser]] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            below += action.choices.items()
            words += action.choices
        elif action.option_strings:
            words += action.option_strings
            if action.nargs != 0:
                options.append((list(action.option_strings), [str(choice) for choice in action.choices or ()]))
        else:
            words += [str(choice) for choice in action.choices or ()]
    yield path, words, options
    for name, child in below:
        yield from _walk(child, f"{path}/{name}")


def _quoted(text: str) -> str:
    return shlex.quote(text) if text else "''"
