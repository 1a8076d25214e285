"""A cohort of phantoms: ids, splits, groups, lesions and labels, drawn before any volume is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vesalius.datasets.phantom.lattice import stream
from vesalius.datasets.phantom.settings import Hemisphere, LesionSettings, PhantomSettings
from vesalius.datasets.phantom.subject import PhantomSubject, make_phantom

if TYPE_CHECKING:
    from collections.abc import Iterator

# Sizes are the quartiles of 120 real stroke lesions (17.4 and 48.9 mm, median 28); dark lesions lie around the
# contrast of chronic infarcts in T1w, so that those of white matter look like grey matter and those of grey matter like
# sulci: docs/decisions/0003-phantom.md.
SIZE_MM = (17.4, 48.9)  # drawn uniformly in its logarithm
DARKER = (0.3, 0.5)
BRIGHTER = (0.08, 0.16)
SHARE_DARKER = 0.7
SOFTNESS_MM = (2.0, 6.0)


@dataclass(frozen=True, kw_only=True)
class PhantomCase:
    """One subject of a cohort, not made yet.

    Attributes:
        subject_id: such as ``phantom-train-003``.
        split: train, validation, gate or test.
        group: ``healthy``, ``hypointense`` or ``hyperintense`` (in T1w).
        seed: of the subject.
        settings: grid and look.
        lesions: to be planted.
        labels: ``lesion_left``, ``lesion_right`` (bool) and ``lesion_type`` (``none`` where there is none).
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
            yield _case(seed, split, number, settings)


def _case(seed: int, split: str, number: int, settings: PhantomSettings) -> PhantomCase:
    rng = stream(seed, f"case {split} {number}")
    own = int(rng.integers(2**62))
    side: Hemisphere = "left" if rng.random() < 0.5 else "right"
    dark = bool(rng.random() < SHARE_DARKER)
    size = SIZE_MM[0] * (SIZE_MM[1] / SIZE_MM[0]) ** rng.random()
    contrast = -rng.uniform(*DARKER) if dark else rng.uniform(*BRIGHTER)
    softness = rng.uniform(*SOFTNESS_MM)
    has_lesion = split != "train" and number % 3 != 2
    group = ("hypointense" if dark else "hyperintense") if has_lesion else "healthy"
    lesion = LesionSettings(size_mm=float(size), contrast=float(contrast), softness_mm=float(softness), hemisphere=side)
    return PhantomCase(
        subject_id=f"phantom-{split}-{number:03d}",
        split=split,
        group=group,
        seed=own,
        settings=settings,
        lesions=(lesion,) if has_lesion else (),
        labels={
            "lesion_left": has_lesion and side == "left",
            "lesion_right": has_lesion and side == "right",
            "lesion_type": group if has_lesion else "none",
        },
    )
