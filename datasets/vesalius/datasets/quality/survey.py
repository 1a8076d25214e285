"""One pass over a cohort: portraits, their medians, their measures, and what stands out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vesalius.datasets.quality.comparison import Likeness, Reference, liken, reference_of, template_brain, template_on
from vesalius.datasets.quality.duplicates import equal_content, likenesses
from vesalius.datasets.quality.judging import judge
from vesalius.datasets.quality.portrait import Portrait, overlap, placed_grid, portray
from vesalius.datasets.quality.report import CohortQuality, Limits, Measures, SubjectQuality
from vesalius.platform.errors import StoreError
from vesalius.platform.progress import silent
from vesalius.platform.store import SubjectArrays

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from vesalius.datasets.quality.duplicates import Twins
    from vesalius.datasets.quality.portrait import See
    from vesalius.platform.progress import Progress
    from vesalius.platform.store import CohortStore, SubjectRecord

Frame = Literal["template", "grid", "own"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """Everything that was measured, before it is judged.

    Attributes:
        records: by id.
        unreadable: why a subject could not be read, by id.
        empty: ids of subjects without a brain.
        order: ids of the subjects with a portrait; measures, likeness and twins are in this order.
        measures: figures of each.
        likeness: how like the median each is; None where there are too few to say.
        cuts: at which face each brain ends flat.
        twins: pairs with the same content.
        common_brain: the median brain in the portraits' frame; None without subjects.
        frame: what grid they lie on.
        judged: whether there are enough to judge them against each other.
        brains_centred: the recipe moves every brain to the middle of the grid.
    """

    records: Mapping[str, SubjectRecord]
    unreadable: Mapping[str, str]
    empty: tuple[str, ...]
    order: tuple[str, ...]
    measures: tuple[Measures, ...]
    likeness: tuple[Likeness | None, ...]
    cuts: tuple[str, ...]
    twins: tuple[Twins, ...]
    common_brain: NDArray[np.float32] | None
    frame: Frame
    judged: bool
    brains_centred: bool


def survey(
    store: CohortStore, limits: Limits | None = None, *, see: See | None = None, progress: Progress = silent
) -> CohortQuality:
    """Look at every subject of a store and say what stands out.

    A thousand subjects of 2 mm take some 100 MB a channel beside the one that is being read. No random number is
    drawn: the same store gives the same answer.

    Args:
        store: the cohort.
        limits: thresholds; None for the default ones.
        see: called with every subject while its voxels are in memory.
        progress: called before each subject.
    """
    limits = limits or Limits()
    portraits, unreadable, empty = _portraits(store, see, progress)
    records = {record.subject_id: record for record in store.subjects()}
    known = [records[portrait.subject_id] for portrait in portraits]
    shared = _one_grid(known)
    judged = len(portraits) >= limits.min_subjects
    reference = reference_of(portraits, one_grid=shared) if portraits else None
    frame, template = _frame(known, reference, limits)
    likeness = tuple(
        liken(one, reference, least=limits.orientation_least) if judged and reference is not None else None
        for one in portraits
    )
    twins: list[Twins] = list(equal_content(list(records.values())))
    twins = [_renumbered(pair, list(records), [one.subject_id for one in portraits]) for pair in twins]
    alike: dict[int, float] = {}
    if judged and reference is not None:
        equal = {(pair.one, pair.other) for pair in twins}
        for pair in likenesses(portraits, reference):
            for number in (pair.one, pair.other):
                alike[number] = max(alike.get(number, -1.0), pair.correlation)
            if pair.correlation >= limits.twin_correlation and (pair.one, pair.other) not in equal:
                twins.append(pair)
    measures = tuple(
        _measure(one, reference, template, likeness[number], alike.get(number))
        for number, one in enumerate(portraits)
        if reference is not None
    )
    seen = Seen(
        records=records,
        unreadable=unreadable,
        empty=tuple(empty),
        order=tuple(one.subject_id for one in portraits),
        measures=measures,
        likeness=likeness,
        cuts=tuple(one.cut_face for one in portraits),
        twins=tuple(pair for pair in twins if pair.one >= 0 and pair.other >= 0),
        common_brain=None if reference is None else reference.brain,
        frame=frame,
        judged=judged,
        brains_centred=_brains_centred(store),
    )
    judgement = judge(seen, limits)
    histograms = {one.subject_id: one.histograms for one in portraits}
    figures = dict(zip(seen.order, measures, strict=True))
    subjects = [
        SubjectQuality(
            subject_id=subject_id,
            split=record.split,
            group=record.group,
            has_lesion=record.has_lesion,
            person=_person(record),
            demographics=record.demographics,
            measures=figures.get(subject_id, Measures()),
            histograms=_named(record.channels, histograms.get(subject_id)),
            findings=judgement.findings.get(subject_id, ()),
        )
        for subject_id, record in records.items()
    ]
    return CohortQuality(
        num_subjects=len(records),
        frame=frame,
        judged=judged,
        limits=limits,
        medians=judgement.medians,
        deviations=judgement.deviations,
        histograms=_named(store.channels, None if reference is None else reference.histograms),
        findings=judgement.cohort,
        subjects=tuple(sorted(subjects, key=judgement.order)),
        cannot=judgement.cannot,
    )


def _portraits(
    store: CohortStore, see: See | None, progress: Progress
) -> tuple[list[Portrait], dict[str, str], list[str]]:
    portraits: list[Portrait] = []
    unreadable: dict[str, str] = {}
    empty: list[str] = []
    records = store.subjects()
    for done, record in enumerate(records):
        progress(done, len(records), record.subject_id)
        try:
            arrays = SubjectArrays(
                image=store.image(record.subject_id),
                brain=store.brain(record.subject_id),
                lesion=store.mask(record.subject_id, "lesion"),
            )
        except StoreError as error:
            unreadable[record.subject_id] = str(error)
            continue
        portrait = portray(record, arrays)
        if portrait is None:
            empty.append(record.subject_id)
        else:
            portraits.append(portrait)
        if see is not None:
            see(record, arrays)
    progress(len(records), len(records), "")
    return portraits, unreadable, empty


def _measure(
    portrait: Portrait,
    reference: Reference,
    template: NDArray[np.bool_] | None,
    likeness: Likeness | None,
    twin: float | None,
) -> Measures:
    if template is not None:
        template_overlap = overlap(portrait.placed, template)
    else:
        template_overlap = overlap(portrait.brain >= 0.5, template_brain() >= 0.5)
    measures = Measures(
        template_overlap=template_overlap, brain_ml=portrait.brain_ml, cut_share=portrait.cut_share, twin=twin
    )
    if likeness is None:
        return measures
    placed = {
        "overlap": overlap(portrait.brain >= 0.5, reference.inside)
        if reference.placed is None
        else overlap(portrait.placed, reference.placed),
        "offset_mm": None
        if reference.placed is None
        else float(np.linalg.norm(portrait.offset_mm - reference.offset_mm)),
    }
    figures = {
        name: getattr(likeness, name)
        for name in ("similarity", "turned", "contrast", "information", "histogram_distance")
    }
    return measures.model_copy(update={**placed, **figures})


def _one_grid(records: Sequence[SubjectRecord]) -> bool:
    first = records[0] if records else None
    return first is not None and all(
        record.shape == first.shape and np.allclose(record.spacing_mm, first.spacing_mm, rtol=0, atol=1e-4)
        for record in records
    )


def _frame(
    records: Sequence[SubjectRecord], reference: Reference | None, limits: Limits
) -> tuple[Frame, NDArray[np.bool_] | None]:
    """Return what the cohort lies on, and the template's brain there where that is MNI space: as measured."""
    if reference is None or reference.placed is None:
        return "own", None
    first = np.asarray(records[0].affine)
    if not all(np.allclose(record.affine, first, rtol=0, atol=1e-2) for record in records):
        return "grid", None
    template = template_on(*placed_grid(records[0]))
    if overlap(reference.placed, template) < limits.template_overlap:
        return "grid", None
    return "template", template


def _brains_centred(store: CohortStore) -> bool:
    recipe: dict[str, Any] = store.recipe
    return (
        recipe.get("registration", "none") == "none"
        and recipe.get("center_mm", ()) is None
        and (recipe.get("box_mm") is not None or recipe.get("grid") is not None)
    )


def _renumbered(pair: Twins, ids: Sequence[str], order: Sequence[str]) -> Twins:
    """Number a pair by portraits; -1 for a subject without one, which is damaged and named for that."""
    from dataclasses import replace

    places = {subject_id: number for number, subject_id in enumerate(order)}
    return replace(pair, one=places.get(ids[pair.one], -1), other=places.get(ids[pair.other], -1))


def _named(channels: Sequence[str], histograms: NDArray[np.float32] | None) -> dict[str, tuple[float, ...]]:
    if histograms is None:
        return {}
    rows = (tuple(round(float(share), 5) for share in row) for row in histograms)
    return dict(zip(channels, rows, strict=True))


def _person(record: SubjectRecord) -> str | None:
    person = record.notes.get("person")
    return person if isinstance(person, str) else None
