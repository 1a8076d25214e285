"""Gates: what is asked of a candidate, declared in a file, each answered by itself.

::

    settings.py    the gate file
    evidence.py    what they look at
    comparing.py   better than the champion; no subgroup worse
    single.py      false positives, seconds, lineage
    verdict.py     what each says
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vesalius.platform.registry.gates.comparing import better, check_subgroups, subgroups
from vesalius.platform.registry.gates.evidence import Evidence, Judged, Lineage, Timing
from vesalius.platform.registry.gates.settings import (
    BetterGate,
    FalsePositivesGate,
    Gates,
    LineageGate,
    SecondsGate,
    SubgroupsGate,
    default_gates_text,
    read_gates,
)
from vesalius.platform.registry.gates.single import false_positives, lineage, seconds, upper_bound_of_mean
from vesalius.platform.registry.gates.verdict import Verdict

if TYPE_CHECKING:
    from vesalius.platform.evaluation import PairedResult

__all__ = [
    "BetterGate",
    "Evidence",
    "FalsePositivesGate",
    "Gates",
    "Judged",
    "Lineage",
    "LineageGate",
    "SecondsGate",
    "SubgroupsGate",
    "Timing",
    "Verdict",
    "check_subgroups",
    "default_gates_text",
    "judge",
    "read_gates",
    "upper_bound_of_mean",
]


def judge(gates: Gates, evidence: Evidence) -> tuple[tuple[Verdict, ...], PairedResult | None]:
    """Ask every gate; what one says hides none of the others.

    Returns:
        A verdict for each gate that is asked, in the order of the gate file; and the comparison with the champion.

    Raises:
        SettingError: the gate file names labels that the gate's subjects do not have.
    """
    verdicts: list[Verdict] = []
    comparison = None
    if gates.better is not None:
        verdict, comparison = better(gates.better, gates, evidence)
        verdicts.append(verdict)
    if gates.false_positives is not None:
        verdicts.append(false_positives(gates.false_positives, gates.voxel_set, evidence))
    if gates.subgroups is not None:
        verdicts.append(subgroups(gates.subgroups, gates, evidence))
    if gates.seconds is not None:
        verdicts.append(seconds(gates.seconds, evidence))
    if gates.lineage is not None:
        verdicts.append(lineage(gates.lineage, gates.voxel_set, evidence))
    return tuple(verdicts), comparison
