"""Signed notes and checkpoints, and the keys that sign them.

A checkpoint says which log it is of, how many leaves its tree has, and the tree's root; a note is such a text with the
signatures under it. Keys are written as other tools of transparency logs write them.

Source: C2SP signed-note and tlog-checkpoint; the text of private keys is that of Go's golang.org/x/mod/sumdb/note.
"""

from __future__ import annotations

import binascii
import os
import re
import stat
from base64 import b64decode, b64encode
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Self

import nacl.exceptions
from nacl.signing import SigningKey, VerifyKey

from cuebook.events.errors import ConfigurationError
from cuebook.ledger.errors import ExportError, TamperedError
from cuebook.ledger.merkle import HASH_BYTES

__all__ = ["Checkpoint", "PrivateKey", "PublicKey", "read_notes"]

_ED25519 = b"\x01"
_KEY_ID_BYTES = 4
_MAX_NOTE_CHARS = 64 * 1024
_SIGNATURE_LINE = "\N{EM DASH} "
_is_name = re.compile(r"[^\s+\x00-\x1f]{1,255}").fullmatch
_is_size = re.compile(r"0|[1-9][0-9]{0,18}").fullmatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What the log looked like at `size` leaves. `note` is the signed text it was read from."""

    origin: str
    size: int
    root: bytes
    note: str = ""

    @property
    def text(self) -> str:
        """What is signed."""
        return f"{self.origin}\n{self.size}\n{b64encode(self.root).decode()}\n"

    @classmethod
    def parse(cls, text: str, note: str = "") -> Self:
        """Read the text of a note as a checkpoint. Raises ExportError."""
        lines = text.split("\n")
        origin, size, root = (*lines[:3], "", "", "")[:3]
        try:
            data = _base64(root)
        except ValueError:
            data = b""
        whole = lines[-1] == "" and all(lines[:-1])
        if not whole or not origin or _is_size(size) is None or len(data) != HASH_BYTES:
            raise ExportError(
                f"{lines[0][:60]!r} begins no checkpoint", remedy="a checkpoint is origin, size and root, a line each"
            )
        return cls(origin=origin, size=int(size), root=data, note=note)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """Whose signature is believed. `name` is the log's origin."""

    name: str
    key: bytes

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `<name>+<id>+<key>`, or the file of that name that holds it. Raises ConfigurationError."""
        if "+" not in text or Path(text).is_file():
            try:
                text = Path(text).read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise ConfigurationError(
                    f"there is no public key {text!r}", remedy="give the file, or NAME+ID+KEY itself"
                ) from error
        name, _, rest = text.strip().partition("+")
        number, _, encoded = rest.partition("+")
        try:
            data = _base64(encoded)
            found = cls(name, data[1:])
            VerifyKey(found.key)
        except (ValueError, nacl.exceptions.CryptoError) as error:
            raise ConfigurationError(f"{text.strip()[:80]!r} is no public key", remedy=_KEY_HELP) from error
        if data[:1] != _ED25519 or _is_name(name) is None or number != found.id.hex():
            raise ConfigurationError(f"{text.strip()[:80]!r} is no Ed25519 public key", remedy=_KEY_HELP)
        return found

    @property
    def id(self) -> bytes:
        """Four bytes that stand for it in a signature line."""
        return sha256(f"{self.name}\n".encode() + _ED25519 + self.key).digest()[:_KEY_ID_BYTES]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{b64encode(_ED25519 + self.key).decode()}"

    def open(self, note: str) -> str:
        """The text of a note that this key has signed.

        Raises TamperedError when it has not; ExportError for what is no note.
        """
        text, blank, signatures = note.rpartition("\n\n")
        if not blank or not signatures.endswith("\n") or len(note) > _MAX_NOTE_CHARS or _has_controls(note):
            raise ExportError(f"{note[:60]!r} is no signed note", remedy="a note ends in lines of signatures")
        text += "\n"
        signed = False
        for line in signatures[:-1].split("\n"):
            name, _, encoded = line.removeprefix(_SIGNATURE_LINE).partition(" ")
            try:
                data = _base64(encoded)
            except ValueError:
                data = b""
            if not line.startswith(_SIGNATURE_LINE) or _is_name(name) is None or len(data) <= _KEY_ID_BYTES:
                raise ExportError(f"{line[:60]!r} is no line of a signature", remedy="the note was cut or edited")
            if (name, data[:_KEY_ID_BYTES]) == (self.name, self.id) and not signed:
                try:
                    VerifyKey(self.key).verify(text.encode(), data[_KEY_ID_BYTES:])
                except (nacl.exceptions.CryptoError, ValueError) as error:
                    raise TamperedError(
                        f"the signature of {name} does not fit its text: {text.splitlines()[:2]}",
                        remedy="the checkpoint was altered; take it from where the sealer wrote it",
                    ) from error
                signed = True
        if not signed:
            raise TamperedError(
                f"{self.name}+{self.id.hex()} has not signed {text.splitlines()[:2]}",
                remedy="give the public key of the log's own sealer",
            )
        return text

    def checkpoint(self, note: str) -> Checkpoint:
        """The checkpoint in a note that this key has signed, of the log of its name. Raises as `open`."""
        found = Checkpoint.parse(self.open(note), note)
        if found.origin != self.name:
            raise TamperedError(
                f"the checkpoint is of {found.origin!r}, the key of {self.name!r}", remedy="they must be of one log"
            )
        return found


class PrivateKey:
    """What seals a log. Nothing of the system but its sealer needs it."""

    def __init__(self, name: str, seed: bytes) -> None:
        if _is_name(name) is None:
            raise ConfigurationError(
                f"{name[:60]!r} cannot be the name of a log", remedy="use one without blanks and '+'"
            )
        self._key = SigningKey(seed)
        self.public = PublicKey(name, bytes(self._key.verify_key))

    @classmethod
    def generate(cls, name: str) -> Self:
        """Make a new one."""
        return cls(name, bytes(SigningKey.generate()))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a key file. Raises ConfigurationError, also when others may read it."""
        try:
            with path.open(encoding="utf-8") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                text = file.read(4096).strip()
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"the key file {str(path)!r} cannot be read: {error}", remedy=f"make one: cuebook audit key {path}"
            ) from error
        if mode & 0o077 and not _is_credential(path):
            raise ConfigurationError(
                f"the key file {str(path)!r} can be read by others (mode {mode:o})", remedy=f"chmod 600 {path}"
            )
        name, number, encoded = (*text.removeprefix("PRIVATE+KEY+").split("+", 2), "", "")[:3]
        refusal = ConfigurationError(f"{str(path)!r} is no private key", remedy=f"make one: cuebook audit key {path}")
        try:
            data = _base64(encoded)
            found = cls(name, data[1:])
        except (ValueError, ConfigurationError, nacl.exceptions.CryptoError) as error:
            raise refusal from error
        if not text.startswith("PRIVATE+KEY+") or data[:1] != _ED25519 or number != found.public.id.hex():
            raise refusal
        return found

    def save(self, path: Path) -> Path:
        """Write the key for its owner alone, and the public one beside it, whose path is returned.

        Raises ConfigurationError; a file that is there is never overwritten.
        """
        public = path.with_name(f"{path.name}.pub")
        text = (
            f"PRIVATE+KEY+{self.public.name}+{self.public.id.hex()}+{b64encode(_ED25519 + bytes(self._key)).decode()}"
        )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for name, content, mode in ((path, text, 0o600), (public, str(self.public), 0o644)):
                number = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
                with os.fdopen(number, "w", encoding="utf-8") as file:
                    file.write(f"{content}\n")
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            raise ConfigurationError(
                f"the key cannot be written: {error}", remedy="choose another file; one that is there is kept"
            ) from error
        return public

    def sign(self, text: str) -> str:
        """The text as a signed note."""
        signature = b64encode(self.public.id + self._key.sign(text.encode()).signature).decode()
        return f"{text}\n{_SIGNATURE_LINE}{self.public.name} {signature}\n"

    def checkpoint(self, size: int, root: bytes) -> Checkpoint:
        """A signed checkpoint of this key's log."""
        found = Checkpoint(origin=self.public.name, size=size, root=root)
        return Checkpoint(origin=found.origin, size=size, root=root, note=self.sign(found.text))


def read_notes(text: str) -> tuple[list[str], str]:
    """Take apart a file of notes with an empty line after each; also what is left after the last complete one."""
    notes: list[str] = []
    start = place = 0
    under = False
    while (end := text.find("\n", place)) >= 0:
        line = text[place:end]
        if under and not line:
            notes.append(text[start:place])
            start, under = end + 1, False
        elif line.startswith(_SIGNATURE_LINE):
            under = True
        place = end + 1
    if under and place == len(text):  # a single note, as it is sent around, has no empty line after it
        notes.append(text[start:])
        start = place
    return notes, text[start:]


_KEY_HELP = "write it as NAME+ID+KEY, as 'cuebook audit key' prints it"


def _base64(text: str) -> bytes:
    try:
        data = b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(text) from error
    if b64encode(data).decode() != text:  # the last character may hold bits that nobody reads
        raise ValueError(text)
    return data


def _has_controls(note: str) -> bool:
    return any(char < " " and char != "\n" for char in note)


def _is_credential(path: Path) -> bool:
    """Whether systemd keeps it for this unit: the folder is closed to others, whatever the file's mode seems to say.

    Source: systemd.exec(5), `LoadCredential=`; an access list for the unit's user shows as rights of the group.
    """
    folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
    return bool(folder) and path.parent == Path(folder)
