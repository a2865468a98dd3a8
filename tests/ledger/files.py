"""Exports in memory, for tests that write, alter and read them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from cuebook.ledger.jsonl import JsonlReader, JsonlWriter
from cuebook.ledger.manifest import Header
from cuebook.ledger.merkle import Frontier
from cuebook.ledger.notes import Checkpoint, PrivateKey
from cuebook.ledger.parquet import ParquetReader, ParquetWriter
from cuebook.ledger.record import Record, leaf_of
from cuebook.ledger.verify import Report, verify

__all__ = ["READERS", "WRITERS", "checkpoints_of", "history", "read", "written"]

WRITERS: dict[str, Any] = {"jsonl": JsonlWriter, "parquet": ParquetWriter}
READERS: dict[str, Any] = {"jsonl": JsonlReader, "parquet": ParquetReader}


def history(count: int, first: int = 1) -> list[Record]:
    """Messages as a log could have them, from a sequence on."""
    return [
        Record(
            n,
            1_767_225_600_000_000_000 + n * 1_000_003,
            b"cue.event.order.%d" % (n % 7),
            b"" if n % 3 else b"NATS/1.0\r\nNats-Msg-Id: m-%d\r\n\r\n" % n,
            b'{"order": %d}' % n if n % 5 else bytes([n % 256, 0xFF, 0x00]),
        )
        for n in range(first, first + count)
    ]


def written(name: str, records: Sequence[Record], header: Header | None = None) -> bytes:
    """An export of these messages."""
    first, last = records[0].sequence, records[-1].sequence
    file = io.BytesIO()
    writer = WRITERS[name](
        file, header or Header(space="cue", stream="CUE", filters=(), first=first, last=last, before=())
    )
    writer.add(records)
    writer.close()
    return file.getvalue()


def read(name: str, data: bytes, checkpoints: Sequence[Checkpoint] = ()) -> Report:
    """What verifying an export says. Raises ExportError, TamperedError."""
    return verify(READERS[name](io.BytesIO(data)), checkpoints)


def checkpoints_of(records: Sequence[Record], key: PrivateKey, every: int) -> list[Checkpoint]:
    """Signed checkpoints at each multiple of `every`."""
    tree, found = Frontier(), []
    for record in records:
        tree.add(leaf_of(record))
        if tree.size % every == 0:
            found.append(key.checkpoint(tree.size, tree.root()))
    return found
