from __future__ import annotations

import re
import subprocess
import sys
from importlib.resources import files

import pytest

from cuebook.examples.support.classifier import Classifier, TrainedReader, load_samples, report
from cuebook.examples.support.models import Reading, Ticket
from cuebook.examples.support.tickets import DEMONSTRATIONS


@pytest.fixture(scope="module")
def reader() -> TrainedReader:
    return TrainedReader.train()


async def test_four_in_five_tickets_it_never_saw_are_read_right(reader: TrainedReader) -> None:
    heldout = [sample for sample in load_samples() if sample.split == "heldout"]
    right = [(await reader.read(sample.text)).intent == sample.intent for sample in heldout]
    assert len(right) >= 100
    assert sum(right) / len(right) >= 0.8


async def test_low_confidence_marks_wrong_readings_more_often_than_right_ones(reader: TrainedReader) -> None:
    heldout = [sample for sample in load_samples() if sample.split == "heldout"]
    readings = [(sample, await reader.read(sample.text)) for sample in heldout]
    wrong = [reading.low_confidence for sample, reading in readings if reading.intent != sample.intent]
    right = [reading.low_confidence for sample, reading in readings if reading.intent == sample.intent]
    assert sum(wrong) / len(wrong) > sum(right) / len(right)


def test_held_out_tickets_are_not_training_tickets_in_other_words() -> None:
    def words(text: str) -> frozenset[str]:
        return frozenset(re.findall(r"[a-z']+", text.lower()))

    train = [words(sample.text) for sample in load_samples() if sample.split == "train"]
    heldout = [words(sample.text) for sample in load_samples() if sample.split == "heldout"]
    assert max(len(one & other) / len(one | other) for one in heldout for other in train) < 0.7


def test_every_intent_is_in_both_splits() -> None:
    splits: dict[str, set[str]] = {}
    for sample in load_samples():
        splits.setdefault(sample.intent, set()).add(sample.split)
    assert len(splits) == 5
    assert all(split == {"train", "heldout"} for split in splits.values())


def test_no_demonstration_is_a_sample() -> None:
    samples = {sample.text for sample in load_samples()}
    assert not samples & {demonstration.ticket.text for demonstration in DEMONSTRATIONS}


async def test_training_again_gives_the_same_readings(reader: TrainedReader) -> None:
    text = "my blender arrived broken, order 8812"
    assert await TrainedReader.train().read(text) == await reader.read(text)


async def test_a_reading_names_intent_confidence_and_order(reader: TrainedReader) -> None:
    reading = await reader.read("my blender arrived broken, order 8812")
    assert (reading.intent, reading.order_id, reading.low_confidence) == ("damaged_item", "8812", False)
    assert 0.45 <= reading.confidence <= 1


async def test_low_confidence_is_in_the_stored_reading(reader: TrainedReader) -> None:
    reading = await reader.read("Der Deckel von Bestellung 8838 schließt nicht.")
    assert reading.model_dump(mode="json")["low_confidence"] is True
    assert Reading.model_validate(reading.model_dump(mode="json")) == reading


async def test_the_order_number_has_no_say_in_the_intent(reader: TrainedReader) -> None:
    confidences = {(await reader.read(f"Where is order {number}?")).confidence for number in (8801, 8840, 12345)}
    assert len(confidences) == 1


async def test_the_agent_trains_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUEBOOK_LLM_BASE_URL", raising=False)
    agent = Classifier()
    await agent.start()
    reading = await agent.classify(Ticket(id="t-1", text="Great service, thank you!"))
    await agent.stop()
    assert (reading.intent, reading.read_by) == ("praise", "trained classifier")


async def test_the_report_counts_what_it_measures(reader: TrainedReader) -> None:
    heldout = [sample for sample in load_samples() if sample.split == "heldout"]
    right = [(await reader.read(sample.text)).intent == sample.intent for sample in heldout]
    text = await report(reader)
    assert f"({sum(right)} of {len(right)})" in text
    confusions = sum(int(count) for count in re.findall(r" -> \w+: (\d+)", text))
    assert confusions == len(right) - sum(right)


def test_the_module_prints_its_report() -> None:
    command = [sys.executable, "-m", "cuebook.examples.support.classifier"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "accuracy" in printed
    assert "confusions" in printed


async def test_the_readme_tells_the_accuracy_as_it_is(reader: TrainedReader) -> None:
    """Another release of scikit-learn may read a ticket or two differently; more than that and the text is old."""
    accuracy = re.compile(r"^accuracy ([\d.]+)%", re.MULTILINE)
    told = accuracy.search((files("cuebook.examples.support") / "README.md").read_text())
    measured = accuracy.search(await report(reader))
    assert told is not None
    assert measured is not None
    assert float(told[1]) == pytest.approx(float(measured[1]), abs=3.0)
