"""The section on limits: where it parts from its paper, what was not tested."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vesalius.infra.cards.document import Section, Table

if TYPE_CHECKING:
    from vesalius.infra.cards.writing import CardSources

_FEW_LESIONS = 10


def caveats(sources: CardSources) -> Section:
    """What to bear in mind, and what would have to be done before more is claimed."""
    deviations = () if sources.kind is None else sources.kind.deviations
    tables = []
    if deviations:
        rows = tuple((one.paper, one.here, one.why) for one in deviations)
        tables.append(Table(title="Where it parts from its paper", heads=("the paper", "here", "why"), rows=rows))
    return Section(title="Caveats and Recommendations", items=tuple(_untested(sources)), tables=tuple(tables))


def _untested(sources: CardSources) -> list[str]:
    unknown = [split for split in ("test", "gate") if split not in sources.figures]
    found = [f"No figures on the {split} split are known." for split in unknown]
    for split, of_split in sources.figures.items():
        one = of_split.get("all") or next(iter(of_split.values()))
        if one.num_lesions < _FEW_LESIONS:
            found.append(
                f"The {split} split holds {one.num_lesions} subjects with a lesion: its intervals are wide and rough."
            )
    if "validation" in sources.figures and not set(sources.figures) - {"validation"}:
        found.append("All figures are of the split that its thresholds were chosen on: they flatter it.")
    if not sources.subgroups and not _gate_judged(sources):
        found.append("It was not judged on any subgroup apart: that it does equally well on all is not shown.")
    if sources.model.thresholds and any(one.policy == "best_dice" for one in sources.model.thresholds.values()):
        found.append("Its threshold was chosen on subjects with lesions: it is not free of labels.")
    found.append("One cohort, one seed: neither other sites nor the spread over seeds were tested here.")
    return found


def _gate_judged(sources: CardSources) -> bool:
    verdicts = () if sources.promotion is None else sources.promotion.verdicts
    return any("lower_bound" in one for verdict in verdicts if verdict.gate == "subgroups" for one in verdict.details)
