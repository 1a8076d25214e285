"""A cohort of phantoms: ids, splits, groups, lesions and labels, drawn before any volume is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vesalius.datasets.phantom.lattice import stream
from vesalius.datasets.phantom.settings import LesionSettings, PhantomSettings
from vesalius.datasets.phantom.subject import PhantomSubject, make_phantom

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, kw_only=True)
class PhantomCase:
    """One subject of a cohort, not made yet.

    Attributes:
        subject_id: such as ``phantom-train-003``.
        split: train, validation, gate or test.
        group: ``healthy`` or the kind of lesion.
        seed: of the subject.
        settings: grid and look.
        lesions: to be planted.
        labels: ``lesion_left``, ``lesion_right`` (bool) and ``lesion_type``.
    """

    subject_id: str
    split: str
    group: str
    seed: int
    settings: PhantomSettings
    lesions: tuple[LesionSettings, ...] = ()
    labels: dict[str, bool | int | float | str] = field(default_factory=dict)

    def make(self) -> PhantomSubject:
        """Make the volume."""
        return make_phantom(self.seed, self.settings, lesions=self.lesions)


def phantom_cohort(
    num_train: int = 16,
    num_validation: int = 6,
    num_gate: int = 6,
    num_test: int = 9,
    settings: PhantomSettings | None = None,
    seed: int = 0,
) -> Iterator[PhantomCase]:
    """Yield the subjects of a cohort: training subjects are healthy, two in three of the others have a lesion.

    A subject depends on (seed, split, its number) alone: a larger cohort contains the smaller one.
    """
    settings = settings or PhantomSettings()
    counts = {"train": num_train, "validation": num_validation, "gate": num_gate, "test": num_test}
    for split, count in counts.items():
        for number in range(count):
            rng = stream(seed, f"case {split} {number}")
            own = int(rng.integers(2**62))
            lesions: tuple[LesionSettings, ...] = ()
            group = "healthy"
            side = "left" if rng.random() < 0.5 else "right"
            if split != "train" and number % 3 != 2:
                dark = rng.random() < 0.7
                group = "hypointense" if dark else "hyperintense"
                size = float(12 * (3 ** rng.random()))
                contrast = -float(rng.uniform(0.15, 0.35)) if dark else float(rng.uniform(0.12, 0.25))
                soft = float(rng.uniform(2, 6))
                lesions = (LesionSettings(size_mm=size, contrast=contrast, softness_mm=soft, hemisphere=side),)  # type: ignore[arg-type]
            labels: dict[str, bool | int | float | str] = {
                "lesion_left": bool(lesions) and side == "left",
                "lesion_right": bool(lesions) and side == "right",
                "lesion_type": group if lesions else "none",
            }
            yield PhantomCase(
                subject_id=f"phantom-{split}-{number:03d}",
                split=split,
                group=group,
                seed=own,
                settings=settings,
                lesions=lesions,
                labels=labels,
            )
