"""A paper's table as data: its rows, what it printed, how it was judged. One JSON file a paper in ``protocols/``."""

from __future__ import annotations

import difflib
import json
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from vesalius.datasets.phantom import CohortSettings
from vesalius.datasets.recipes import Recipe, recipe_named
from vesalius.infra.pipeline import ThresholdRule
from vesalius.platform.config import Settings, override, validate
from vesalius.platform.errors import SettingError
from vesalius.platform.evaluation import StructureTask

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.resources.abc import Traversable


class Published(Settings):
    """What a row of the paper prints, under the keys that figures carry everywhere; None where it prints nothing.

    Attributes:
        seconds_per_slice: where the paper times slices and not volumes.
        figures: what is no figure of voxels, under the keys of the protocol's level
            (:mod:`vesalius.infra.reproduce.levels`).
    """

    best_dice: float | None = None
    dice_mean: float | None = None
    dice_std: float | None = None
    average_precision: float | None = None
    auroc: float | None = None
    fpr_at_95_recall: float | None = None
    image_auroc: float | None = None
    seconds_per_volume: float | None = None
    seconds_per_slice: float | None = None
    figures: dict[str, float] = Field(default_factory=dict)


class Finer(Settings):
    """A row that is trained on a finer grid than the others.

    Attributes:
        recipe: of the finer store.
        phantom_shape: voxels of the finer phantoms.
    """

    recipe: str
    phantom_shape: tuple[int, int, int]


class PreparedBy(Settings):
    """A recipe, by its name and what is changed of it.

    Attributes:
        name: in the recipes' table.
        settings: changes to it.
    """

    name: str
    settings: dict[str, Any] = Field(default_factory=dict)

    def recipe(self) -> Recipe:
        """Return the recipe.

        Raises:
            SettingError: there is no such recipe, or it has no such setting.
        """
        return override(recipe_named(self.name), self.settings)


class Row(Settings):
    """One row of the table.

    Attributes:
        label: as the paper prints it; where two rows share one, with what tells them apart.
        latent: size of its code, as the paper prints it.
        method: in the methods' table.
        preset: the paper's settings of that method.
        settings: changes to the preset, by dotted key.
        scaled: changes to the method's ``demo`` preset that make it this row's, where the settings are scaled down.
        finer: another grid than the other rows'.
        published: what the paper prints; None for a row that the paper does not have.
        source: where it prints it.
        differs: what is not as in the paper, besides the data.
    """

    label: str
    latent: str = ""
    method: str
    preset: str = "paper"
    settings: dict[str, Any] = Field(default_factory=dict)
    scaled: dict[str, Any] = Field(default_factory=dict)
    finer: Finer | None = None
    published: Published | None = None
    source: str
    differs: tuple[str, ...] = ()


class Protocol(Settings):
    """A paper's table and how it came about.

    Attributes:
        name: what the command line calls it.
        title: the paper.
        table: which of its tables.
        data: the paper's data, with the section.
        modalities: the paper's modality, as data sets name it.
        recipe: the paper's preprocessing.
        judged: what the table is about: voxels, whole images, or structures of the head. Figures of voxels are
            computed for all.
        lesion_labels: of whole images: labels of kinds of lesion that are reported apart.
        quality_labels: of whole images: labels of what spoils an image, or of an operation; no cases of screening.
        tasks: of structures: what is asked of them.
        surface: of structures: the one whose surface is drawn.
        headless: of structures: changes to the settings of a method, by its name, where the cohort has none of them and
            keeps no head's mask either.
        baselines: changes to the settings of the trivial methods, where the table is not about the brain alone.
        trivial_rows: trivial methods below the usual ones, with the windows of the paper's own maps: a window that
            suits the lesions lifts every map.
        voxel_set: the voxels that the paper judges.
        rule: how the paper chooses thresholds.
        rule_source: where it says so.
        reference_grid: the grid that the paper judges all rows on.
        phantom: generated subjects that stand in where no data are given; the seed is part of it.
        phantom_recipe: how they are prepared.
        rows: in the paper's order.
        differs: of all rows.
        phantom_differs: of the phantoms, where they stand in.
    """

    name: str
    title: str
    table: str
    data: str
    modalities: tuple[str, ...] = Field(min_length=1)
    recipe: str
    judged: Literal["voxels", "images", "structures"] = "voxels"
    lesion_labels: tuple[str, ...] = ()
    quality_labels: tuple[str, ...] = ()
    tasks: tuple[StructureTask, ...] = ()
    surface: str | None = None
    headless: dict[str, dict[str, Any]] = Field(default_factory=dict)
    baselines: dict[str, Any] = Field(default_factory=dict)
    trivial_rows: tuple[Row, ...] = ()
    voxel_set: Literal["all", "brain"]
    rule: ThresholdRule
    rule_source: str
    reference_grid: str
    phantom: CohortSettings
    phantom_recipe: PreparedBy = PreparedBy(name="as_is")
    rows: tuple[Row, ...] = Field(min_length=1)
    differs: tuple[str, ...] = ()
    phantom_differs: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        labels = [row.label for row in (*self.rows, *self.trivial())]
        if len(set(labels)) != len(labels):
            raise ValueError("two rows share a label: give each its own")
        if (self.judged == "structures") != bool(self.tasks):
            raise ValueError("tasks go with judged = structures: give both, or neither")
        if self.surface is not None and self.surface not in {s.name for task in self.tasks for s in task.structures}:
            raise ValueError(f"no task is about '{self.surface}': name a structure of one as surface")
        return self

    def trivial(self) -> tuple[Row, ...]:
        """Return the trivial methods that stand below the paper's rows."""
        changes = {"settings": self.baselines, "scaled": self.baselines}
        return (*(row.model_copy(update=changes) for row in BASELINES), *self.trivial_rows)

    def choose(self, labels: Sequence[str]) -> tuple[Row, ...]:
        """Return the rows of these labels in the table's order, all where none is named.

        Raises:
            SettingError: there is no such row; names the nearest one.
        """
        known = {row.label.lower(): row.label for row in self.rows}
        wanted = set()
        for label in labels:
            if label.lower() not in known:
                near = difflib.get_close_matches(label.lower(), list(known), n=1, cutoff=0.5)
                hint = f"did you mean '{known[near[0]]}'?" if near else f"its rows are {', '.join(known.values())}"
                raise SettingError(f"{self.name} has no row '{label}': {hint}")
            wanted.add(known[label.lower()])
        return tuple(row for row in self.rows if not wanted or row.label in wanted)


BASELINES = (
    Row(
        label="intensity threshold",
        method="intensity_threshold",
        source="not in the paper: what every row has to beat",
    ),
    Row(
        label="healthy atlas",
        method="healthy_atlas",
        source="not in the paper: what every row has to beat",
    ),
)
"""Trivial methods that stand below every paper's rows."""


def protocol_names() -> list[str]:
    """Return the papers that there are protocols for, sorted."""
    return sorted(file.name.removesuffix(".json") for file in _folder().iterdir() if file.name.endswith(".json"))


def load_protocol(name: str) -> Protocol:
    """Return a paper's protocol.

    Raises:
        SettingError: no such paper (names the nearest one), or the file does not fit.
    """
    names = protocol_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'?" if near else f"the known ones are {', '.join(names)}"
        raise SettingError(f"unknown paper '{name}': {hint}")
    file = _folder() / f"{name}.json"
    return validate(Protocol, json.loads(file.read_text(encoding="utf-8")), str(file))


def _folder() -> Traversable:
    return resources.files("vesalius.infra.reproduce") / "protocols"
