"""What an ingest did: which subjects came in, which did not and why."""

from __future__ import annotations

from vesalius.platform.config import Settings
from vesalius.platform.errors import PartialIngestError


class IngestReport(Settings):
    """What an ingest did.

    Attributes:
        store: the store's folder or URL.
        added: ids committed by this ingest, sorted.
        unchanged: ids that were there already with the same source and recipe, sorted.
        failed: reason by id, for every subject that was not taken in.
        warnings: what a person should look at, by id.
        splits: number of subjects by split, of the whole store.
        channels: modalities, in the order of the images' first axis.
        digest: the cohort's digest afterwards.
        seconds: wall-clock time.
    """

    store: str
    added: tuple[str, ...]
    unchanged: tuple[str, ...]
    failed: dict[str, str]
    warnings: dict[str, tuple[str, ...]]
    splits: dict[str, int]
    channels: tuple[str, ...]
    digest: str
    seconds: float

    def raise_for_failures(self) -> None:
        """Raise where anything failed.

        Raises:
            PartialIngestError: its message lists every subject and reason; the others are committed.
        """
        if self.failed:
            total = len(self.added) + len(self.unchanged) + len(self.failed)
            reasons = "; ".join(self.failed.values())
            raise PartialIngestError(f"{len(self.failed)} of {total} subjects could not be taken in: {reasons}")
