"""What can be wrong with evidence.

CuebookError
├── ExportError      the file is no export that this release can read: cut short, newer, something else
└── TamperedError    what was checked is not what was sealed, or does not agree with itself
"""

from __future__ import annotations

from cuebook.events.errors import CuebookError

__all__ = ["ExportError", "TamperedError"]


class ExportError(CuebookError):
    """A file that cannot be read as what it should be."""


class TamperedError(CuebookError):
    """Bytes were altered, removed, added or exchanged, or a signature is not that of the key."""
