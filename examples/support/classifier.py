"""The intent classifier: reads a ticket, says what the customer wants and which order it is about.

Trained when the agent starts, from the tickets that ship with the example. With CUEBOOK_LLM_BASE_URL set, a chat model
reads the tickets instead and has to answer in the same form.

    python -m cuebook.examples.support.classifier     how well the trained one does on tickets it never saw
"""

import asyncio
import csv
import re
from importlib.resources import files
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import BaseModel

from cuebook.actors import Agent, Retry, handler
from cuebook.events.errors import ConfigurationError
from cuebook.examples.support.chat_model import ChatModel
from cuebook.examples.support.models import IntentName, Judgement, Reading, Ticket
from cuebook.examples.support.order_number import order_number
from cuebook.examples.support.settings import chat_settings

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

__all__ = ["Classifier", "Reader", "Sample", "TrainedReader", "load_samples", "report"]

_DIGITS = re.compile(r"\d+")


class Reader(Protocol):
    """Anything that can read a ticket's text."""

    async def read(self, text: str) -> Reading:
        """Judge one text."""

    async def close(self) -> None:
        """Give back what it holds."""


class Classifier(Agent):
    """Says what a customer wants, how sure that is, and which order it is about."""

    name = "classifier"
    concurrency = 8
    recycle_after = 5_000  # a fresh instance has to train first

    async def start(self) -> None:
        """Train on the shipped tickets, well under a second of work; or connect to the chat model that is set."""
        settings = chat_settings()
        self.reader: Reader = ChatModel(settings) if settings else await asyncio.to_thread(TrainedReader.train)

    async def stop(self) -> None:
        """Close the reader's connections."""
        await self.reader.close()

    @handler(timeout_s=30, retry=Retry(attempts=4, backoff_s=0.5, never=(ConfigurationError,)), pure=True)
    async def classify(self, ticket: Ticket) -> Reading:
        """Read one ticket. Low confidence is an answer, not an error: it is marked in the reading."""
        return await self.reader.read(ticket.text)


class Sample(BaseModel):
    """One labelled ticket. `heldout` rows are for measuring and are never trained on."""

    text: str
    intent: IntentName
    split: Literal["train", "heldout"]


class TrainedReader:
    """Logistic regression over word and letter sequences; order numbers are found by `order_number`, not learned."""

    def __init__(self, pipeline: "Pipeline") -> None:
        self._pipeline = pipeline

    @classmethod
    def train(cls) -> "TrainedReader":
        """Fit on the training rows; the same rows give the same model."""
        # Imported here: the orchestrator loads this module for the handler's name alone, and scikit-learn would cost it
        # a second and 100 MB.
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline, make_union

        words = TfidfVectorizer(preprocessor=_normalise, sublinear_tf=True, ngram_range=(1, 2))
        letters = TfidfVectorizer(
            preprocessor=_normalise, sublinear_tf=True, analyzer="char_wb", ngram_range=(3, 4), min_df=2
        )
        # C: the best log loss of 1, 5, 10 and 20 in five-fold cross-validation on the training rows.
        pipeline = make_pipeline(make_union(words, letters), LogisticRegression(C=20, max_iter=300))
        rows = [sample for sample in load_samples() if sample.split == "train"]
        pipeline.fit([row.text for row in rows], [row.intent for row in rows])
        return cls(pipeline)

    async def read(self, text: str) -> Reading:
        """Judge one text; about a millisecond of work, so it stays on the event loop."""
        probabilities = self._pipeline.predict_proba([text])[0]
        best = int(probabilities.argmax())
        judgement = Judgement(
            intent=self._pipeline.classes_[best],
            confidence=round(float(probabilities[best]), 4),
            order_id=order_number(text),
        )
        return Reading(**judgement.model_dump(), read_by="trained classifier")

    async def close(self) -> None:
        """Nothing to give back."""


def load_samples() -> list[Sample]:
    """Return the shipped tickets in file order."""
    rows = csv.DictReader((files(__package__) / "samples.csv").read_text(encoding="utf-8").splitlines())
    return [Sample.model_validate(row) for row in rows]


async def report(reader: Reader) -> str:
    """Measure a reader on the held-out tickets: figures per intent, the confusions, and what low confidence caught."""
    from sklearn.metrics import classification_report, confusion_matrix

    rows = [sample for sample in load_samples() if sample.split == "heldout"]
    readings = [await reader.read(row.text) for row in rows]
    wanted, got = [row.intent for row in rows], [reading.intent for reading in readings]
    intents = sorted(set(wanted))
    confusion = confusion_matrix(wanted, got, labels=intents)
    right = [want == have for want, have in zip(wanted, got, strict=True)]
    sure = [ok for ok, reading in zip(right, readings, strict=True) if not reading.low_confidence]
    lines = [
        f"{len(rows)} held-out tickets, read by: {readings[0].read_by}",
        f"accuracy {sum(right) / len(right):.1%} ({sum(right)} of {len(right)})",
        f"low confidence, left to a person: {len(rows) - len(sure)}; accuracy on the rest {sum(sure) / len(sure):.1%}",
        "",
        classification_report(wanted, got, labels=intents, digits=2, zero_division=0).rstrip(),
        "",
        "confusions (wanted -> read as):",
    ]
    lines += [
        f"  {want} -> {have}: {confusion[i][j]}"
        for i, want in enumerate(intents)
        for j, have in enumerate(intents)
        if i != j and confusion[i][j]
    ]
    return "\n".join(lines)


def _normalise(text: str) -> str:
    """Lower case, every number the same: which order it is says nothing about what is wanted."""
    return _DIGITS.sub("0", text.lower())


async def _main() -> None:
    settings = chat_settings()
    reader: Reader = ChatModel(settings) if settings else TrainedReader.train()
    try:
        print(await report(reader))
    finally:
        await reader.close()


if __name__ == "__main__":
    asyncio.run(_main())
