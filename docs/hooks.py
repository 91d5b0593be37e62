"""What mkdocs asks of this project while it builds: the page of all commands, written from their own parsers."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from kaggle_kit.cli import make_parser

PAGE = "commands.md"
OF_ALL = {"help", "json", "debug"}  # said once, at the top
ONE_LINE = 10_000  # columns: browsers break lines where the window ends, whatever terminal builds the site
COMMAND_BLOCK = re.compile(r'<div class="language-(?:sh|text) highlight">.*?</div>', re.DOTALL)
TEXT = re.compile(r"(?<=>)[^<]+")  # between tags
HYPHENATED = re.compile(r"(?<![\w-])-*\w+(?:-\w+)+|(?<![\w-])--?\w+")
INTRODUCTION = """\
# All commands

This page is made from the parsers when the site is built: it says what `kaggle-kit COMMAND --help` says.

Every command has an example. `--json` prints one machine-readable line last, and `--debug` shows the traceback of an
error. The exit code is 0 when it is done, 1 when the check it makes failed, and 2 with one line when you can mend it.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of all commands to the site's files."""
    files.append(File.generated(config, PAGE, content=commands_page(make_parser())))
    return files


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Keep an option in one piece where a window breaks a command's line."""
    return COMMAND_BLOCK.sub(lambda block: TEXT.sub(_unbroken, block[0]), html)


def _unbroken(text: re.Match[str]) -> str:
    return HYPHENATED.sub(r'<span class="unbroken">\g<0></span>', text[0])


def commands_page(parser: argparse.ArgumentParser) -> str:
    """Return the page, in Markdown: each command under its name, with its help."""
    sections = [f"{'#' * level} {one.prog}\n\n{_help(one)}\n" for level, one in _walk(parser, level=2)]
    return "\n".join([INTRODUCTION, *sections])


def _walk(parser: argparse.ArgumentParser, *, level: int) -> Iterator[tuple[int, argparse.ArgumentParser]]:
    """Yield the parsers of all commands with their heading's level, each before the commands below it."""
    for action in parser._actions:  # argparse tells of subcommands nowhere else
        if isinstance(action, argparse._SubParsersAction):
            for one in dict.fromkeys(action.choices.values()):  # an alias is the same parser again
                yield level, one
                yield from _walk(one, level=level + 1)


def _help(parser: argparse.ArgumentParser) -> str:
    """Return what `--help` prints, as a list that any width of window breaks well."""
    formatter = argparse.HelpFormatter(parser.prog, width=ONE_LINE)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
    usage = formatter.format_help().removeprefix("usage: ").strip()
    arguments = [
        f"- `{formatter._format_action_invocation(action)}`: {_prose(formatter._expand_help(action))}"
        for action in parser._actions
        if action.help not in (None, argparse.SUPPRESS) and action.dest not in OF_ALL
    ]
    parts = [_prose(parser.description or ""), _fenced(usage), "\n".join(arguments), _fenced(parser.epilog or "")]
    return "\n\n".join(part for part in parts if part)


def _fenced(text: str) -> str:
    return f"```text\n{text.strip()}\n```" if text else ""


def _prose(text: str) -> str:
    """Return a help text as Markdown that shows it as it is; what stands between backticks is code there too."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([\\*_\[\]<>#|~])", r"\\\1", part) for part in parts)
