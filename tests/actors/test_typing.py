"""What a type checker says about sagas and agents as their authors write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from mypy import api

ROOT = Path(__file__).parents[2]

SNIPPET = """
from pydantic import BaseModel

from cuebook.actors import Agent, Approval, Run, Task, handler, saga


class Charge(BaseModel):
    id: str


class Refund(BaseModel):
    charge_id: str


class Refunds(Agent):
    name = "refund"

    @handler(timeout_s=30)
    async def issue(self, charge: Charge, task: Task) -> Refund:
        return Refund(charge_id=charge.id)

    @handler()
    def count(self, charges: list[Charge]) -> int:
        return len(charges)

    @handler()
    async def forget(self, charge: Charge) -> None: ...

    @issue.compensation
    async def take_back(self, charge: Charge, refund: Refund) -> None: ...


@saga(on="charge.disputed")
async def dispute(run: Run, charge: Charge) -> Refund:
    reveal_type(Refunds.issue)  # Handler[Charge, Refund]
    reveal_type(await run.call(Refunds.issue, charge))  # Refund
    reveal_type(await run.call(Refunds.count, [charge]))  # int
    reveal_type(await run.call(Refunds.forget, charge))  # None
    reveal_type(await run.ask_human("really?", Approval))  # Approval
    reveal_type(await run.wait_for("charge.settled", Charge))  # Charge
    reveal_type(await run.sleep(1))  # None
    both = await run.gather(run.call(Refunds.issue, charge), run.call(Refunds.count, [charge]))
    reveal_type(both)  # tuple[Refund, int]
    reveal_type(await run.gather(*[run.call(Refunds.issue, charge)] * 9))  # tuple[Refund, ...]
    raise run.abort("no")


reveal_type(dispute)  # Saga[Charge, Refund]
"""

WRONG = {
    'await run.call(Refunds.issue, "ch_1")': 'Cannot infer value of type parameter "In" of "call" of "Run"',
    "await run.call(Refunds.issue, Refund(charge_id='1'))": 'Cannot infer value of type parameter "In" of "call"',
    "await run.call(Refunds.missing, charge)": '"type[Refunds]" has no attribute "missing"',
    "await run.call(Refunds.take_back, charge)": 'Argument 1 to "call" of "Run" has incompatible type',
    "await run.call(Refunds.issue, charge, retry=3)": 'Argument "retry" to "call" of "Run" has incompatible type "int"',
    "refund: str = await run.call(Refunds.issue, charge)": '"Handler[Charge, Refund]"; expected "Handler[Charge, str]"',
    "return await run.call(Refunds.count, [charge])": 'expected "Handler[list[Charge], Refund]"',
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mypy")


def checked(source: str, folder: Path, cache: Path) -> str:
    """What mypy prints about a module of a user."""
    (folder / "shop.py").write_text(source)
    arguments = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(cache), str(folder / "shop.py")]
    output, errors, _ = api.run([*arguments, "--hide-error-context", "--no-color-output", "--no-error-summary"])
    assert errors == ""
    return output


def test_a_call_has_the_types_of_its_handler(tmp_path: Path, cache: Path) -> None:
    wrong = "".join(f"    {line}\n" for line in WRONG)
    source = f"{SNIPPET}\n\n@saga()\nasync def mistaken(run: Run, charge: Charge) -> Refund:\n{wrong}"
    told = [line for line in checked(source, tmp_path, cache).splitlines() if "shop.py" in line]
    lines = source.splitlines()
    revealed: list[tuple[str, str]] = []
    errors: dict[str, str] = {}
    for one in told:
        line = lines[int(one.split(":")[1]) - 1]
        if "Revealed type is" in one:
            revealed.append((_short(one.split('"')[1]), line.partition("  # ")[2]))
        else:
            errors[line.strip()] = one
    assert [wanted for _, wanted in revealed] == [said for said, _ in revealed]
    assert len(revealed) == SNIPPET.count("reveal_type")
    assert list(errors) == list(WRONG)
    for line, expected in WRONG.items():
        assert expected in errors[line], errors[line]


def _short(told: str) -> str:
    """Names without their modules."""
    for module in ("shop.", "cuebook.actors.agent.", "cuebook.actors.saga.", "builtins."):
        told = told.replace(module, "")
    return told
