"""A supervised process that does what files in its folder say, and notes there what it lives through.

    python supervised_program.py FOLDER

`refuse`: it ends before it is ready. `linger`: it is not ready as long as that is there; `slow-to-end`: it does not end
before that is gone. `spent-PID`, `stuck-PID`, `crash-PID`, `drained-PID`, `over-PID`: what process PID
says or does. `deaf`: nobody heeds a request to end.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from cuebook.cli.serving.supervised import Supervised

FOLDER, PID = Path(sys.argv[-1]), os.getpid()


def note(what: str) -> None:
    with (FOLDER / "notes").open("a") as file:
        file.write(f"{what} {PID}\n")


def says(name: str) -> bool:
    return (FOLDER / f"{name}-{PID}").exists()


def main() -> None:
    line, stop = Supervised.from_environment(), threading.Event()
    assert line is not None

    def on_term(*_: object) -> None:
        if not (FOLDER / "deaf").exists():
            stop.set()

    signal.signal(signal.SIGTERM, on_term)
    line.when_orphaned(stop.set)
    line.tell(state="starting")
    if (FOLDER / "refuse").exists():
        note("refuses")
        sys.exit(4)
    while (FOLDER / "linger").exists() and not stop.is_set():
        time.sleep(0.01)
    note(f"begins{line.number}{''.join(sorted(line.without))}")
    drained: list[str] = []
    while not stop.is_set():
        if says("crash"):
            os.kill(PID, signal.SIGSEGV)
        drained = ["echo"] if says("drained") else []
        spent, stuck = "old" if says("spent") else "", "r/0 wait" if says("stuck") else ""
        line.tell(ready=True, state="", slots=2, in_flight=1, lag=0, done=3, spent=spent, stuck=stuck, drained=drained)
        if says("over"):
            line.tell(ready=True, state="", over=True)
            return
        time.sleep(0.01)
    while (FOLDER / "slow-to-end").exists():
        time.sleep(0.01)
    note("ends")


if __name__ == "__main__":
    main()
