"""The keys that seal a log: made, named after its space, and read from the command line."""

from __future__ import annotations

import os
from pathlib import Path

from cuebook.cli.exits import InputError
from cuebook.cli.options import Output
from cuebook.cli.output import line, note, show_one
from cuebook.events.subjects import check_token
from cuebook.ledger.notes import PrivateKey, PublicKey

__all__ = ["default_name", "make_key", "public_key"]


def default_name(space: str) -> str:
    """A name for the log of a space that was given none."""
    return f"{os.uname().nodename.lower()}/cuebook/{check_token(space, 'space')}"


def make_key(file: Path, name: str, space: str, output: Output) -> None:
    """Write a key pair. Raises ConfigurationError."""
    made = PrivateKey.generate(name or default_name(space))
    public = made.save(file)
    view = {"name": made.public.name, "key": str(file), "public_key": str(public), "public": str(made.public)}
    show_one(output, view, lambda: line(str(made.public)))
    note(f"{file} seals the log: cuebook serve sealer --key {file}; give {public} to whoever verifies", output)


def public_key(text: str) -> PublicKey:
    """The public key that was named. Raises InputError when there is none, ConfigurationError."""
    if not text:
        raise InputError(
            "without the public key nothing is proved", remedy="say --key, as FILE.pub or as the key itself"
        )
    return PublicKey.parse(text)
