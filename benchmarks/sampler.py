"""Where a process spends its CPU time: the stack is looked at after every millisecond of it.

A tracing profiler makes small functions look dear; this one costs a few per cent and leaves the proportions as they
are. What runs in C counts for the line that called it.
"""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Final

__all__ = ["Sampler"]

EVERY_S: Final = 0.001
_ROOT: Final = Path(__file__).resolve().parent.parent


class Sampler:
    """Samples the main thread between `start` and `stop`."""

    def __init__(self) -> None:
        self._total = 0
        self._lines: Counter[tuple[str, int, str]] = Counter()
        self._within: Counter[tuple[str, str]] = Counter()

    def start(self) -> None:
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)

    def stop(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)

    def write(self, path: Path, *, cpu_us: float) -> None:
        """Write functions and lines, dearest first, as shares of `cpu_us`: microseconds of CPU for one task."""
        path.parent.mkdir(parents=True, exist_ok=True)
        total = max(self._total, 1)
        functions: Counter[tuple[str, str]] = Counter()
        for (file, _, name), count in self._lines.items():
            functions[file, name] += count

        def shown(count: int) -> str:
            return f"{100 * count / total:6.1f} % {cpu_us * count / total:7.2f} us"

        lines = [f"{self._total} samples, {cpu_us:.1f} us of CPU for one task", "", "in the function itself"]
        lines += [f"{shown(count)}  {name}  {_short(file)}" for (file, name), count in functions.most_common(50)]
        lines += ["", "in the function and all that it calls"]
        lines += [f"{shown(count)}  {name}  {_short(file)}" for (file, name), count in self._within.most_common(60)]
        lines += ["", "by line"]
        lines += [
            f"{shown(count)}  {_short(file)}:{number}  {name}"
            for (file, number, name), count in self._lines.most_common(60)
        ]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _sample(self, _: int, frame: FrameType | None) -> None:
        if frame is None:
            return
        self._total += 1
        self._lines[frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name] += 1
        seen: set[tuple[str, str]] = set()
        while frame is not None:
            seen.add((frame.f_code.co_filename, frame.f_code.co_name))
            frame = frame.f_back
        self._within.update(seen)


def _short(file: str) -> str:
    for root in (str(_ROOT), *(str(parent) for parent in Path(file).parents if parent.name == "site-packages")):
        file = file.removeprefix(root + "/")
    return file
