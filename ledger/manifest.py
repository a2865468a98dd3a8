"""What an export says about itself: at its beginning what was chosen, at its end what came of it."""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from cuebook.ledger.errors import ExportError
from cuebook.ledger.merkle import HASH_BYTES

__all__ = ["FORMAT", "Damage", "End", "Header"]

FORMAT = 1
"""Of exports as they are written now. What is stored of an older one is read for ever; a newer one is refused."""
_AGAIN = "make the export again"


class Damage(NamedTuple):
    """A part of an export that is not as it was written. `place` is where in the file, for people.

    The messages that it may concern are those from sequence `first` to `last`; 0 where the file does not tell.
    """

    place: str
    first: int
    last: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What was chosen: sequences `first` to `last` of a space's stream, narrowed by subject filters if there are any.

    `log_first` is the first sequence that the stream ever had. `before`: the nodes of the Merkle tree of all that
    stands before `first`, largest first; None where it is not known. `view`: bodies are there as JSON too.
    """

    space: str
    stream: str
    filters: tuple[str, ...]
    first: int
    last: int
    log_first: int = 1
    before: tuple[bytes, ...] | None = None
    view: bool = True

    @property
    def whole(self) -> bool:
        """Whether nothing between `first` and `last` is left out."""
        return not self.filters

    def to_data(self) -> dict[str, Any]:
        """As JSON has it, always in this order."""
        return {
            "cuebook": "export",
            "format": FORMAT,
            "space": self.space,
            "stream": self.stream,
            "filters": list(self.filters),
            "first": self.first,
            "last": self.last,
            "log_first": self.log_first,
            "before": None if self.before is None else [b64encode(node).decode() for node in self.before],
            "view": self.view,
        }

    @classmethod
    def from_data(cls, data: Any) -> Self:
        """Read it. Raises ExportError for what is none, or is of a newer format."""
        if not isinstance(data, dict) or data.get("cuebook") != "export":
            raise ExportError("the file is not an export of cuebook", remedy="make one: cuebook events export FILE")
        version = data.get("format")
        if type(version) is int and version > FORMAT:
            raise ExportError(
                f"the export is of format {version}, and this release reads up to {FORMAT}", remedy="upgrade cuebook"
            )
        try:
            found = cls._of(data)
        except (KeyError, TypeError, ValueError) as error:
            raise ExportError(f"the export's header makes no sense: {error!r:.80}", remedy=_AGAIN) from error
        return found

    @classmethod
    def _of(cls, data: dict[str, Any]) -> Self:
        before = data["before"]
        found = cls(
            space=_text(data["space"]),
            stream=_text(data["stream"]),
            filters=tuple(_text(one) for one in data["filters"]),
            first=_number(data["first"]),
            last=_number(data["last"]),
            log_first=_number(data["log_first"]),
            before=None if before is None else tuple(_hash(node) for node in before),
            view=bool(data["view"]),
        )
        if data["format"] != FORMAT or not 1 <= found.log_first <= found.first <= found.last:
            raise ValueError(data)
        if found.before is not None and len(found.before) != (found.first - found.log_first).bit_count():
            raise ValueError(found.before)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """What an export holds: `count` messages, the sequences of the first and the last (0: none).

    `root` is that of the Merkle tree of these messages alone, the same in each format; `sha256` that of all before.
    """

    count: int
    first: int
    last: int
    root: bytes
    sha256: str

    def to_data(self) -> dict[str, Any]:
        """As JSON has it, always in this order."""
        return {
            "cuebook": "end",
            "count": self.count,
            "first": self.first,
            "last": self.last,
            "root": b64encode(self.root).decode(),
            "sha256": self.sha256,
        }

    @classmethod
    def from_data(cls, data: Any) -> Self:
        """Read it. Raises ExportError."""
        if not isinstance(data, dict) or data.get("cuebook") != "end":
            raise ExportError("the export's last part is no end", remedy=_AGAIN)
        try:
            return cls(
                count=_number(data["count"]),
                first=_number(data["first"]),
                last=_number(data["last"]),
                root=_hash(data["root"]),
                sha256=_text(data["sha256"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ExportError("the export's last part makes no sense", remedy=_AGAIN) from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(value)
    return value


def _hash(value: Any) -> bytes:
    try:
        found = b64decode(_text(value), validate=True)
    except binascii.Error as error:
        raise ValueError(value) from error
    if len(found) != HASH_BYTES:
        raise ValueError(value)
    return found
