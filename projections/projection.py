"""What a projection is: tables, and how a batch of the log changes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, TypeAlias

from cuebook.events.envelope import Envelope
from cuebook.events.log import Unreadable
from cuebook.projections.database import Transaction
from cuebook.projections.timeseries import Aggregate, History

__all__ = ["Batch", "Item", "Projection"]

Item: TypeAlias = Envelope | Unreadable
Batch: TypeAlias = Sequence[Item]
"""Consecutive messages of the log, in order, none left out."""


class Projection(ABC):
    """Tables derived from the log. The same events give the same rows, however they are cut into batches.

    So `apply` reads no clock and no table but its own, and an instance keeps nothing between batches. What it raises
    about one event parks that event; see `writer`.
    """

    name: ClassVar[str]
    """Of the projection and its checkpoint: lower case, letters and underscores."""
    version: ClassVar[int]
    """Counts up with every change of the tables or of the fold: the new version is filled from the log."""
    tables: ClassVar[bytes]
    """Creates the tables, each with a primary key, in the schema of a generation of this version."""
    histories: ClassVar[tuple[History, ...]] = ()
    """Those of its tables that grow with time."""
    aggregates: ClassVar[tuple[Aggregate, ...]] = ()
    """What is added up from them."""
    session: ClassVar[bytes] = b""
    """Run on every new connection; for temporary tables."""

    @abstractmethod
    async def apply(self, batch: Batch, tx: Transaction) -> None:
        """Fold the batch into the tables. The transaction, and the checkpoint in it, are the caller's."""

    def history(self, item: Item) -> str:  # noqa: ARG002 - for those whose rows depend on several events
        """Subject filter of all events that rows of this one follow from; empty: from this one alone."""
        return ""

    async def forget(self, item: Item, tx: Transaction) -> None:  # noqa: B027 - most have nothing to forget
        """Remove the rows that follow from the history of `item`, so that it can be applied again as a whole."""
