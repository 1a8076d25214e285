"""What is asked of a candidate before it becomes champion: gates as frozen settings, read from a file."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from vesalius.platform.config import Settings, unknown_setting, validate
from vesalius.platform.errors import SettingError
from vesalius.platform.evaluation import VoxelSet
from vesalius.platform.settings_file import read_yaml

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pydantic import BaseModel

ComparedFigure = Literal["average_precision", "best_dice", "auroc", "fpr_at_95_recall", "image_auroc"]
LineageItem = Literal[
    "cohort_digest", "recipe_digest", "settings", "weights", "code_version", "run_id", "thresholds", "parent"
]
_GROUPING = re.compile(r"group|(?:labels|demographics)\..+")


class BetterGate(Settings):
    """Better than the champion on the same gate subjects: the paired bootstrap's lower bound exceeds the margin."""

    figure: ComparedFigure = Field("average_precision", description="what is compared; of all subjects pooled")
    margin: float = Field(0.0, ge=0, le=1, description="what the improvement must exceed")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of the one-sided bound, and of the interval shown")


class FalsePositivesGate(Settings):
    """Few false positives on healthy subjects: the upper bound of their mean is at most the limit.

    A false positive is a voxel of a healthy gate subject, in the voxel set, that the model's own threshold calls
    anomalous once small components are dropped. Each subject gives one figure; the bound of their mean is Student's.
    """

    limit: float = Field(ge=0, description="what the bound may reach: a share of voxels, or millilitres")
    measure: Literal["share", "ml"] = Field("share", description="share of the subject's voxels, or their volume")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of the one-sided upper bound of the mean")
    min_subjects: int = Field(2, ge=2, description="fewer healthy subjects cannot decide")


class SubgroupsGate(Settings):
    """No subgroup worse than the champion by more than the limit: each one's lower bound lies above it.

    Every subgroup must pass, each at the full confidence (an intersection-union test): the chance of letting through a
    model that is truly worse by more than the limit in some subgroup is at most 1 - confidence, however many there are.
    """

    by: tuple[str, ...] = Field(
        ("group",), min_length=1, description="what makes subgroups: group, labels.NAME, demographics.NAME"
    )
    bins: dict[str, tuple[float, ...]] = Field(
        default_factory=dict, description="bounds between the subgroups of a number, such as demographics.age: [40, 60]"
    )
    figure: ComparedFigure = Field("average_precision", description="what is compared within each subgroup")
    worse_by: float = Field(0.05, ge=0, le=1, description="how much worse a subgroup may be")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of each subgroup's one-sided bound")
    min_lesions: int = Field(4, ge=2, description="subgroups with fewer subjects that have a lesion are not judged")

    @field_validator("by")
    @classmethod
    def _known_kinds(cls, by: tuple[str, ...]) -> tuple[str, ...]:
        for key in by:
            if not _GROUPING.fullmatch(key):
                raise ValueError("expected group, labels.NAME or demographics.NAME")
        return tuple(dict.fromkeys(by))

    @field_validator("bins")
    @classmethod
    def _rising(cls, bins: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        for key, bounds in bins.items():
            if not bounds or list(bounds) != sorted(set(bounds)):
                raise ValueError(f"the bounds of {key} must rise")
        return bins


class SecondsGate(Settings):
    """Fast enough: the median of seconds per volume, each scored alone, is at most the limit.

    Measured by the promotion itself, after one volume that is not counted, on the device that it runs on.
    """

    limit: float = Field(gt=0, description="seconds")
    volumes: int = Field(5, ge=1, description="gate subjects that are timed, at most")
    device: Literal["cpu", "cuda"] | None = Field(None, description="the limit is of this device; None takes any")


class LineageGate(Settings):
    """Where the model comes from is on record."""

    required: tuple[LineageItem, ...] = Field(
        ("cohort_digest", "recipe_digest", "settings", "weights", "code_version", "run_id", "thresholds", "parent"),
        min_length=1,
        description="what must be known; parent: of a run that started from another one",
    )


class Gates(Settings):
    """Everything that is asked of a candidate. A gate that is null is not asked."""

    better: BetterGate | None = Field(default_factory=BetterGate, description="than the champion")
    false_positives: FalsePositivesGate | None = Field(None, description="on healthy subjects")
    subgroups: SubgroupsGate | None = Field(None, description="none worse than the champion")
    seconds: SecondsGate | None = Field(None, description="per volume")
    lineage: LineageGate | None = Field(None, description="that must be on record")
    voxel_set: VoxelSet = Field("all", description="voxels that count: all of the grid, or those inside the brain")
    num_resamples: int = Field(2000, ge=100, description="of each paired bootstrap over subjects")
    seed: int = Field(0, ge=0, description="of the resamples")
    batch_volumes: int = Field(4, ge=1, description="volumes scored together")

    @property
    def asked(self) -> list[str]:
        """The gates that are asked, in their order."""
        names = ("better", "false_positives", "subgroups", "seconds", "lineage")
        return [name for name in names if getattr(self, name) is not None]

    @property
    def compares(self) -> bool:
        """Whether lesions are needed, to compare with the champion."""
        return self.better is not None or self.subgroups is not None


def read_gates(path: Path) -> Gates:
    """Read a gate file: YAML or JSON whose keys are those of :class:`Gates`.

    Raises:
        SettingError: it cannot be read, a key is unknown (with the nearest known one), or a value does not fit.
    """
    value = read_yaml(path, "a gate file")
    if not isinstance(value, dict):
        raise SettingError(f"{path} holds no gates: expected keys such as better, false_positives and seconds")
    _check_keys(path, value)
    gates = validate(Gates, value, str(path))
    if not gates.asked:
        raise SettingError(f"{path} asks nothing: a candidate would be promoted unseen; give at least one gate")
    return gates


def default_gates_text() -> str:
    """Return the gate file that stands for the defaults, to start one's own from."""
    return (files("vesalius.platform.registry.gates") / "default.yaml").read_text(encoding="utf-8")


def _check_keys(path: Path, value: dict[Any, Any]) -> None:
    known = list(_paths(Gates))
    for key in _given(value):
        if key not in known and not key.startswith("subgroups.bins."):
            raise SettingError(f"{path}: {unknown_setting(key, known)}")


def _given(value: dict[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, one in value.items():
        yield f"{prefix}{key}"
        if isinstance(one, dict):
            yield from _given(one, f"{prefix}{key}.")


def _paths(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in kind.model_fields.items():
        yield f"{prefix}{name}"
        nested = next(
            (
                one
                for one in (info.annotation, *getattr(info.annotation, "__args__", ()))
                if isinstance(one, type) and issubclass(one, Settings)
            ),
            None,
        )
        if nested is not None:
            yield from _paths(nested, f"{prefix}{name}.")
