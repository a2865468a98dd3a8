"""A fence around an author's code that is driven by recorded results: what would reach outside is refused and noted.

Refused are connections, look-ups of names, other processes, threads, tasks of the event loop, and every change to
files, as far as Python itself is asked for them (audit events, PEP 578). Not refused: reading files, the clock,
randomness, and C extensions that reach outside without a word. Nor is importing a module fenced, which happens before.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from typing import Any, Self

__all__ = ["Fence", "FencedError"]

_REFUSED = frozenset({
    "socket.bind", "socket.connect", "socket.getaddrinfo", "socket.gethostbyaddr", "socket.gethostbyname",
    "socket.sendmsg", "socket.sendto", "subprocess.Popen", "pty.spawn", "sqlite3.connect", "_thread.start_new_thread",
    "os.chmod", "os.chown", "os.exec", "os.fork", "os.forkpty", "os.kill", "os.killpg", "os.link", "os.mkdir",
    "os.posix_spawn", "os.remove", "os.rename", "os.rmdir", "os.spawn", "os.symlink", "os.system", "os.truncate",
    "os.utime", "shutil.copyfile", "shutil.copytree", "shutil.move", "shutil.rmtree",
})  # fmt: skip
"""Audit events. Source: the audit events table of the Python library reference."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_MOST_NOTED = 10

_inside: dict[int, Fence] = {}
"""By thread, the fence that its code is in."""
_watching = threading.Event()
"""Set once Python tells us: a hook stays for as long as the process lives."""


class FencedError(BaseException):
    """Code inside a fence wanted to reach outside. Not an Exception, so that no handler of its author holds it."""


class Fence:
    """Use `with fence:` around code on this thread; a fence serves any number of times, one after the other.

    `tried` lists what was refused since it was last emptied, in words for people, also where its author caught that.
    """

    def __init__(self) -> None:
        self.tried: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        if not _watching.is_set():
            _watching.set()
            sys.addaudithook(_look)
            _watch_threads()

    def __enter__(self) -> Self:
        self._loop = asyncio._get_running_loop()  # noqa: SLF001 - the loop's own hooks: else a task escapes the fence
        asyncio._set_running_loop(None)  # noqa: SLF001
        self._bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        _inside[threading.get_ident()] = self
        return self

    def __exit__(self, *exc_info: object) -> None:
        del _inside[threading.get_ident()]
        sys.dont_write_bytecode = self._bytecode
        asyncio._set_running_loop(self._loop)  # noqa: SLF001

    def refuse(self, what: str) -> None:
        """Note it and raise FencedError."""
        if len(self.tried) < _MOST_NOTED:
            self.tried.append(what)
        raise FencedError(what)


def _look(event: str, arguments: tuple[Any, ...]) -> None:
    if not _inside:
        return
    fence = _inside.get(threading.get_ident())
    if fence is None:
        return
    if event in _REFUSED:
        fence.refuse(f"{event} {_shown(event, arguments)}".strip())
    elif event == "open" and _writes(*arguments[1:3]):
        fence.refuse(f"open {arguments[0]!r} for writing")


def _watch_threads() -> None:
    """Python 3.11 starts threads without an audit event."""
    start = getattr(threading, "_start_new_thread", None)
    if start is None:
        return

    def guarded(*arguments: Any) -> Any:
        fence = _inside.get(threading.get_ident())
        if fence is not None:
            fence.refuse("_thread.start_new_thread")
        return start(*arguments)

    threading._start_new_thread = guarded  # type: ignore[attr-defined]  # noqa: SLF001 - what `Thread.start` calls


def _writes(mode: Any, flags: Any) -> bool:
    return (
        bool(flags & _WRITING) if isinstance(flags, int) else isinstance(mode, str) and not {*"wax+"}.isdisjoint(mode)
    )


def _shown(event: str, arguments: tuple[Any, ...]) -> str:
    """What it was about: addresses, paths and programs, but no objects."""
    told = [one for one in arguments if isinstance(one, str | bytes | int | tuple) and one is not None]
    return " ".join(repr(one)[:100] for one in told[:2]) if event != "_thread.start_new_thread" else ""
