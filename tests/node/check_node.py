"""The Node program of docs/wire-format.md does what the page says. Run by `just test-node`: it needs node and npm."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

from tests.commands import DEADLINE_S, Command
from tests.documents import block

HERE = Path(__file__).parent


def test_the_node_program_starts_a_run_and_a_task_and_watches_both(example: Command) -> None:
    program = subprocess.run(
        ["node", "--input-type=module", "-"],
        input=block("docs/wire-format.md", "js", "// watch.mjs"),
        cwd=HERE,  # where its packages are
        env={**os.environ, **example.exported()},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert program.returncode == 0, program.stderr
    lines = program.stdout.splitlines()
    results = {key: json.loads(value) for key, value in re.findall(r"^(run|task): (.*)$", program.stdout, re.MULTILINE)}
    assert results["run"]["result"]["resolution"] == "thanked"
    assert results["task"]["output"]["intent"] == "order_status"
    facts = [re.sub(r"support-\w+|question-\w+|\.i\w{10}$", "*", line.partition("cue.run.")[2]) for line in lines]
    task = ["*.task.0.requested.classifier", "*.task.0.assigned.classifier*", "*.task.0.completed"]
    assert facts[:4] == ["*.started", *task]
    assert facts[facts.index("*.completed") + 2 : -1] == task
