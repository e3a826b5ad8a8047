"""A group of commands that are imported when they are asked for."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar

import click


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is asked for.

    Attributes:
        members: Where each command is, as `module:attribute`, by name, in the order of the help.
    """

    members: ClassVar[Mapping[str, str]] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands.

        Args:
            ctx: Click's context.
        """
        return list(self.members)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command.

        Args:
            ctx: Click's context.
            cmd_name: Name as typed.
        """
        if cmd_name not in self.members:
            return None
        module, _, attribute = self.members[cmd_name].partition(":")
        command: Any = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command
