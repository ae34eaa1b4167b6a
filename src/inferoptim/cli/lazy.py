"""A command group that knows its commands by name and imports one only when it is used.

`inferoptim --help` and shell completion then cost milliseconds, whatever the commands themselves import.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from inspect import cleandoc
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command


@dataclass(frozen=True)
class CommandEntry:
    """Where a command lives and what one line says about it."""

    name: str
    target: str  # 'package.module:function', or ':app' for a Typer application with sub-commands
    help: str  # one line, shown in the list without importing the module
    panel: str  # heading under which `--help` lists it

    @property
    def module(self) -> str:
        """The module part of `target`."""
        return self.target.partition(":")[0]

    @property
    def available(self) -> bool:
        """True when the module is installed; looks for the file, imports nothing but its parent package."""
        return find_spec(self.module) is not None


class LazyCommand(TyperCommand):
    """Stands for a command in lists and completion; becomes the real one when its arguments are parsed."""

    def __init__(self, entry: CommandEntry) -> None:
        super().__init__(
            name=entry.name,
            help=entry.help,
            short_help=entry.help,
            rich_help_panel=entry.panel,
            callback=None,
        )
        self.entry = entry

    def load(self) -> Any:
        """Import the module and build the real command."""
        target = getattr(import_module(self.entry.module), self.entry.target.partition(":")[2])
        if not isinstance(target, typer.Typer):
            application = typer.Typer(add_completion=False)
            text = flowing(target.__doc__) if target.__doc__ else self.entry.help
            application.command(self.entry.name, help=text)(target)
            target = application
        return get_command(target)

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Parse with the real command; the context's command is then the real one, and is what gets invoked."""
        return self.load().make_context(*args, **kwargs)


def flowing(docstring: str) -> str:
    """Its paragraphs as one line each: `--help` breaks lines where the terminal ends, not where the source did."""
    return "\n\n".join(" ".join(part.split()) for part in cleandoc(docstring).split("\n\n"))


class StoppedError(Exception):
    """Ctrl-C or a closed pipe, on its way through the parser, which would report either in its own way."""


class LazyGroup(TyperGroup):
    """The root group. `entries` is set by the subclass; only installed commands are listed."""

    entries: tuple[CommandEntry, ...] = ()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for entry in self.entries:
            if entry.available:
                self.add_command(LazyCommand(entry))

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of `entries`: the order in which a newcomer needs them."""
        return list(self.commands)

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command.

        Raises:
            StoppedError: from KeyboardInterrupt or BrokenPipeError.
        """
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, BrokenPipeError) as error:
            raise StoppedError from error
