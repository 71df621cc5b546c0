"""Documents gathered into batches of a bounded size."""

from __future__ import annotations

from collections.abc import Iterator

from colossal_llama2.dataset.records import RecordBatch

BATCH_CHARACTERS = 2_000_000


class Batching:
    """Takes documents one by one and gives them back in batches."""

    def __init__(self) -> None:
        self._batch = RecordBatch()
        self._held = 0

    def add(self, source: str, target: str, category: str) -> RecordBatch | None:
        """Take a document; return the batch before it where it has no room in that."""
        text = source + target if source else target
        full, batch, held = None, self._batch, self._held + len(text)
        if held > BATCH_CHARACTERS and batch.texts:
            full, self._batch, held = batch, RecordBatch(), len(text)
            batch = self._batch
        batch.texts.append(text)
        batch.source_characters.append(len(source))
        batch.categories.append(category)
        self._held = held
        return full

    def rest(self) -> Iterator[RecordBatch]:
        """Yield what has not been given, if there is any."""
        if self._batch.texts:
            full, self._batch, self._held = self._batch, RecordBatch(), 0
            yield full
