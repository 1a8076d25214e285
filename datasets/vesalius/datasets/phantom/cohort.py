"""A cohort of phantoms: ids, splits, groups, lesions and labels, drawn before any volume is made."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vesalius.datasets.phantom.lattice import stream
from vesalius.datasets.phantom.settings import Finding, FindingSettings, Hemisphere, LesionSettings, PhantomSettings
from vesalius.datasets.phantom.subject import PhantomSubject, make_phantom

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Sizes are the quartiles of 120 real stroke lesions (17.4 and 48.9 mm, median 28); dark lesions lie around the
# contrast of chronic infarcts in T1w, so that those of white matter look like grey matter and those of grey matter like
# sulci: docs/decisions/0003-phantom.md.
SIZE_MM = (17.4, 48.9)  # drawn uniformly in its logarithm
DARKER = (0.3, 0.5)
BRIGHTER = (0.08, 0.16)
SHARE_DARKER = 0.7
SOFTNESS_MM = (2.0, 6.0)

LABELS_OF: dict[Finding, tuple[str, ...]] = {
    "intraparenchymal": ("ich", "iph"),
    "subdural": ("ich", "sdh"),
    "epidural": ("ich", "edh"),
    "fracture": ("fracture", "calvarial_fracture"),
    "hydrocephalus": ("hydrocephalus",),
    "craniectomy": ("post_operative",),
    "shunt": ("post_operative",),
    "metal": ("artefact",),
    "motion": ("artefact",),
    "noise": ("artefact",),
    "wrong_orientation": ("wrong_orientation",),
    "wrong_registration": ("wrong_registration",),
}
"""Labels of a subject with a finding, as in :data:`vesalius.datasets.layouts.ct_findings.CT_FINDINGS`; a bleed has that
of its side beside."""
FINDING_LABELS = tuple(
    dict.fromkeys([*(name for names in LABELS_OF.values() for name in names), "bleed_left", "bleed_right"])
)
"""All of them: a cohort with findings gives every subject each as true or false."""


@dataclass(frozen=True, kw_only=True)
class PhantomCase:
    """One subject of a cohort, not made yet.

    Attributes:
        subject_id: such as ``phantom-train-003``.
        split: train, validation, gate or test.
        group: ``healthy``, ``hypointense`` or ``hyperintense`` (in T1w), or the kind of its finding.
        seed: of the subject.
        settings: grid and look.
        lesions: to be planted.
        labels: ``lesion_left``, ``lesion_right`` (bool) and ``lesion_type`` (``none`` where there is none); in a cohort
            with findings those of :data:`FINDING_LABELS` (bool) and ``finding`` (its kind or ``none``) as well.
        finding: to be set in.
    """

    subject_id: str
    split: str
    group: str
    seed: int
    settings: PhantomSettings
    lesions: tuple[LesionSettings, ...] = ()
    labels: dict[str, bool | int | float | str] = field(default_factory=dict)
    finding: FindingSettings | None = None

    @property
    def anomalous(self) -> bool:
        """Whether there is anything in it that is not in a healthy subject."""
        return bool(self.lesions) or self.finding is not None

    def make(self) -> PhantomSubject:
        """Make the volume."""
        return make_phantom(self.seed, self.settings, lesions=self.lesions, finding=self.finding)


def phantom_cohort(
    num_train: int = 16,
    num_validation: int = 6,
    num_gate: int = 6,
    num_test: int = 9,
    settings: PhantomSettings | None = None,
    seed: int = 0,
    findings: Sequence[Finding] = (),
) -> Iterator[PhantomCase]:
    """Yield the subjects of a cohort: training subjects are healthy, two in three of the others have a lesion.

    With ``findings`` they have these instead, one kind after the other in each split.

    A subject depends on (seed, split, its number) alone: a larger cohort contains the smaller one.
    """
    settings = settings or PhantomSettings()
    counts = {"train": num_train, "validation": num_validation, "gate": num_gate, "test": num_test}
    for split, count in counts.items():
        for number in range(count):
            case = _case(seed, split, number, settings)
            yield _with_finding(case, findings, number) if findings else case


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


def _with_finding(case: PhantomCase, findings: Sequence[Finding], number: int) -> PhantomCase:
    """Put a finding in the place of a case's lesion: the kind by its number among those that have one."""
    labels: dict[str, bool | int | float | str] = dict.fromkeys(FINDING_LABELS, False)
    if not case.lesions:
        return replace(case, labels={**case.labels, **labels, "finding": "none"})
    kind = findings[(number - number // 3) % len(findings)]
    rng = stream(case.seed, "finding")
    side: Hemisphere = "left" if rng.random() < 0.5 else "right"
    finding = FindingSettings(kind=kind, hemisphere=side, severity=float(rng.random()))
    names = LABELS_OF[kind]
    labels |= dict.fromkeys(names, True)
    if "ich" in names:
        labels[f"bleed_{side}"] = True
    one_sided = "ich" in names or "fracture" in names or "post_operative" in names
    own = {"lesion_left": one_sided and side == "left", "lesion_right": one_sided and side == "right"}
    return replace(
        case, group=kind, lesions=(), labels={**own, "lesion_type": kind, **labels, "finding": kind}, finding=finding
    )
