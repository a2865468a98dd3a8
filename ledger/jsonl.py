r"""Exports as lines of JSON: a header, a line for each message, and an end.

    {"cuebook":"export","format":1,...,"sum":"<hex>"}
    {"sequence":17,"recorded_ns":"1767...","subject":"cue.event.x","headers":"<base64>","body":"<base64>","view":...,
     "sum":"<hex>"}
    {"cuebook":"end","count":1,...,"sha256":"<hex>","sum":"<hex>"}

`sum` is the SHA-256 of the line's bytes before `,"sum"`, so that an altered byte is found in its own line. Lines are
ASCII, with exactly these keys in this order and no blanks between them: what one reader sees in a line is what all see.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Any, BinaryIO, Final

from cuebook.ledger.errors import ExportError, TamperedError
from cuebook.ledger.manifest import FORMAT, Damage, End, Header
from cuebook.ledger.merkle import Frontier
from cuebook.ledger.record import Record, leaf_of, view_of

__all__ = ["JsonlReader", "JsonlWriter"]

MAX_LINE_BYTES: Final = 8 * 1024 * 1024
"""A body of 256 KiB of control characters takes six times as much as text in JSON; nothing takes more than this."""
_SUM: Final = b',"sum":"'
_TAIL: Final = b'"}\n'
_TAIL_BYTES: Final = len(_SUM) + 64 + len(_TAIL)
_END: Final = b'{"cuebook":"end"'
_match: Final = re.compile(
    rb'\{"sequence":([1-9][0-9]{0,18}),"recorded_ns":"([0-9]{1,19})","subject":("(?:[^"\\]|\\.)*"),'
    rb'"headers":"([A-Za-z0-9+/=]*)","body":"([A-Za-z0-9+/=]*)"(?:,"view":(.*))?',
    re.DOTALL,
).fullmatch
_beginning: Final = re.compile(rb'\{"sequence":([1-9][0-9]{0,18}),').match
_format: Final = re.compile(rb'\{"cuebook":"export","format":([0-9]{1,9})\b').match


class JsonlWriter:
    """Writes an export to a file that is open for bytes; `close` completes it, the file stays the caller's."""

    def __init__(self, file: BinaryIO, header: Header) -> None:
        self._file, self._view = file, header.view
        self._sum, self._tree = sha256(), Frontier()
        self._first = self._last = 0
        self._write(_line(_dumps(header.to_data())[:-1]))

    def add(self, records: Iterable[Record]) -> None:
        """Write messages."""
        lines = []
        for record in records:
            text = _text(record)
            lines.append(_line(f'{text},"view":{view_of(record.body)}' if self._view else text))
            self._tree.add(leaf_of(record))
            self._first, self._last = self._first or record.sequence, record.sequence
        self._write(b"".join(lines))

    def close(self) -> End:
        """Write the end."""
        end = End(
            count=self._tree.size,
            first=self._first,
            last=self._last,
            root=self._tree.root(),
            sha256=self._sum.hexdigest(),
        )
        self._write(_line(_dumps(end.to_data())[:-1]))
        self._file.flush()
        return end

    def _write(self, data: bytes) -> None:
        self._sum.update(data)
        self._file.write(data)


class JsonlReader:
    """Reads an export from a file that is open for bytes. `end` is there when all was read and it is complete."""

    name = "jsonl"

    def __init__(self, file: BinaryIO) -> None:
        """Read the header. Raises ExportError, and TamperedError when it was altered."""
        self._file = file
        self.end: End | None = None
        line = file.readline(MAX_LINE_BYTES)
        self.position = len(line)
        self._sum = sha256(line)
        self.header = Header.from_data(_checked(line, "line 1, the header,"))

    def items(self) -> Iterator[Record | Damage]:
        """All messages in order, and in their places what was altered."""
        number, last, altered, has_view = 1, self.header.first - 1, 0, self.header.view
        sound = True
        while line := self._file.readline(MAX_LINE_BYTES):
            number += 1
            self.position += len(line)
            text, item = line[:-_TAIL_BYTES], None
            if (
                line[-3:] != _TAIL
                or line[-_TAIL_BYTES:-67] != _SUM
                or sha256(text).hexdigest().encode() != line[-67:-3]
            ):
                wrong = "its sum does not fit"
            elif text.startswith(_END):
                yield from self._finish(line, number, sound=sound)
                return
            else:
                item = _record(text, has_view)
                wrong = item if isinstance(item, str) else ""
            self._sum.update(line)
            if len(line) < MAX_LINE_BYTES and line[-1:] != b"\n":
                yield Damage(f"line {number}", last + 1, self.header.last, "it is cut short there")
                return
            if isinstance(item, Record):
                last, altered = item.sequence, 0
                yield item
            else:
                altered, sound = altered + 1, False
                about = _sequence_of(line, last, altered, self.header)
                yield Damage(f"line {number}", about, about, wrong)
        place = f"after line {number}"
        yield Damage(place, last + 1, self.header.last, "it is cut short there: its end is missing")

    def _finish(self, line: bytes, number: int, *, sound: bool) -> Iterator[Damage]:
        try:
            end = End.from_data(_checked(line, f"line {number}, the end,"))
        except (ExportError, TamperedError) as error:
            yield Damage(f"line {number}", 0, 0, str(error))
            return
        if rest := self._file.readline(MAX_LINE_BYTES):
            yield Damage(f"line {number + 1}", 0, 0, f"something follows the end: {rest[:40]!r}")
        elif not sound:
            return
        elif end.sha256 != self._sum.hexdigest():
            yield Damage(f"line {number}", 0, 0, "the SHA-256 of all lines before it is another")
        else:
            self.end = end


def _record(text: bytes, has_view: bool) -> Record | str:
    """The message in a line, or what is wrong with it."""
    found = _match(text)
    if found is None or (found[6] is None) is has_view:
        return "it is no line of an export"
    sequence, recorded_ns, subject, headers, body, view = found.groups()
    try:
        name = subject[1:-1] if b"\\" not in subject else json.loads(subject).encode("utf-8", "surrogateescape")
        record = Record(int(sequence), int(recorded_ns), name, b64decode(headers), b64decode(body))
    except (ValueError, Base64Error) as error:
        return f"it cannot be decoded: {error}"
    if has_view and view != view_of(record.body).encode():
        return "its view shows something else than its body says"
    if not text.startswith(_text(record).encode()):  # another decoder may see something else in it
        return "it is written in another way than exports are"
    return record


def _text(record: Record) -> str:
    """The one way in which a message is written, without view and sum."""
    sequence, recorded_ns, subject, headers, body = record
    name = _dumps(subject.decode("utf-8", "surrogateescape"))
    return (
        f'{{"sequence":{sequence},"recorded_ns":"{recorded_ns}","subject":{name},'
        f'"headers":"{b64encode(headers).decode()}","body":"{b64encode(body).decode()}"'
    )


def _sequence_of(line: bytes, last: int, altered: int, header: Header) -> int:
    """Which message an altered line is about: what it still says if that can be, else the next that is missing."""
    found = _beginning(line)
    said = int(found[1]) if found else 0
    about = said if last < said <= (last + altered if header.whole else header.last) else last + altered
    return about if about <= header.last else 0  # the end itself


def _checked(line: bytes, what: str) -> Any:
    """The object in a line of our own making. Raises ExportError for what never was one, TamperedError."""
    text, tail = line[:-_TAIL_BYTES], line[-_TAIL_BYTES:]
    if b'"cuebook":"' not in text and not (tail.startswith(_SUM) and tail.endswith(_TAIL)):
        raise ExportError("the file is not an export of cuebook", remedy="make one: cuebook events export FILE")
    newer = _format(text)
    if newer and int(newer[1]) > FORMAT:
        Header.from_data({"cuebook": "export", "format": int(newer[1])})
    if tail != _SUM + sha256(text).hexdigest().encode() + _TAIL:
        raise TamperedError(f"{what} was altered or cut: its sum does not fit", remedy="get the file again")
    try:
        return json.loads(text + b"}")
    except (ValueError, RecursionError) as error:
        raise TamperedError(f"{what} cannot be read: {error}", remedy="get the file again") from error


def _line(text: str) -> bytes:
    data = text.encode("ascii")
    return b"".join((data, _SUM, sha256(data).hexdigest().encode(), _TAIL))


_dumps: Final = json.JSONEncoder(separators=(",", ":")).encode
