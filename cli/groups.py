"""Command groups that load their commands late, and that report a wrong command line as every other error."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import typer
from typer.core import TyperCommand, TyperGroup

from cuebook.cli.exits import Exit, PluginExit, print_error

__all__ = ["LazyGroup", "Noun"]

_PLUGINS = (["check"], ["doctor"])
"""Commands that end as monitoring reads it: with 2 something is critical, a wrong command line is 3."""

_UsageError: Any = typer.BadParameter.__mro__[1]
"""The base of all mistakes on a command line; where typer keeps it differs between its releases."""


class Noun(TyperGroup):
    """A group such as `cuebook run`. Without a command it says which there are."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See typer.core.TyperGroup."""
        if not args and not ctx.resilient_parsing:
            ctx.fail(f"{ctx.command_path!r} needs a command: {', '.join(self.list_commands(ctx))}.")
        return super().parse_args(ctx, args)


class LazyGroup(TyperGroup):
    """The root. A command's module is imported when it is used; the help of the root needs only `modules`."""

    modules: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """By command: the module with its `app`, and one line of help."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the signature of the base
        """All commands, in the order of `modules`."""
        return list(self.modules)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - the signature of the base
        """For listings: a stand-in with the line of help. What is to run comes from `resolve_command`."""
        found = self.modules.get(cmd_name)
        return TyperCommand(cmd_name, callback=None, help=found[1]) if found else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The real command, imported."""
        self.commands = cast(Any, self.modules)  # only its keys are looked at, for "did you mean"
        name, command, rest = super().resolve_command(ctx, args)
        return name, self.load(name) if command is not None and name is not None else None, rest

    def load(self, name: str) -> Any:
        """Import a command."""
        module = importlib.import_module(self.modules[name][0])
        command: Any = typer.main.get_command(module.app)
        command.name = name
        self._dress(command, f"CUEBOOK_{name.upper()}")
        return command

    def _dress(self, command: Any, prefix: str) -> None:
        command.rich_markup_mode = self.rich_markup_mode
        _name_variables(command, prefix)
        for verb, one in getattr(command, "commands", {}).items():
            self._dress(one, f"{prefix}_{verb.upper()}")

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,  # noqa: ARG002 - the signature of the base
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line and exit with its status. A wrong one is reported like any other error."""
        arguments = list(sys.argv[1:] if args is None else args)
        try:
            status = super().main(arguments, prog_name, complete_var, False, windows_expand_args, **extra)
        except _UsageError as usage:
            path = usage.ctx.command_path if usage.ctx is not None else "cuebook"
            print_error(usage.format_message(), f"see '{path} --help'", as_json=_wants_json(arguments))
            status = PluginExit.UNKNOWN if path.split()[1:2] in _PLUGINS else Exit.USAGE
        sys.exit(status if isinstance(status, int) else Exit.OK)


def _name_variables(command: Any, prefix: str) -> None:
    """Give every flag without an environment variable one that is made of the names of command and flag."""
    for parameter in command.params:
        if parameter.param_type_name == "option" and not parameter.envvar:
            longest = max(parameter.opts, key=len)
            parameter.envvar = f"{prefix}_{longest.lstrip('-').replace('-', '_').upper()}"


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether the output asked for is for programs; the command line may be broken elsewhere."""
    value = os.environ.get("CUEBOOK_OUTPUT", "")
    for flag, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if flag in ("-o", "--output"):
            value = following
        elif flag.startswith("--output="):
            value = flag.removeprefix("--output=")
        elif flag.startswith("-o"):
            value = flag.removeprefix("-o").removeprefix("=")
    return value in ("json", "jsonl")
