"""What can be wrong with evidence.

CuebookError
├── UnavailableError
│   └── SegmentsMissingError   history was dropped, and the segments that have it cannot be read here
├── ExportError      the file is no export that this release can read: cut short, newer, something else
└── TamperedError    what was checked is not what was sealed, or does not agree with itself
"""

from __future__ import annotations

from cuebook.events.errors import CuebookError, UnavailableError

__all__ = ["ExportError", "SegmentsMissingError", "TamperedError"]


class ExportError(CuebookError):
    """A file that cannot be read as what it should be."""


class TamperedError(CuebookError):
    """Bytes were altered, removed, added or exchanged, or a signature is not that of the key."""


class SegmentsMissingError(UnavailableError):
    """Old history is only in segments that cannot be read here; services wait until somebody has brought them."""
