"""What a table is reproduced on: phantoms, a prepared store, or raw scans that the paper's recipe prepares."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vesalius.datasets import LAYOUTS
from vesalius.datasets.ingest import ingest
from vesalius.datasets.layouts.phantom import write_cohort
from vesalius.datasets.lesions import plant_lesions
from vesalius.datasets.recipes import Recipe, recipe_named
from vesalius.infra.reproduce.levels import Level, level_of
from vesalius.platform.config import digest
from vesalius.platform.errors import CohortError, SettingError, StoreError
from vesalius.platform.store import CohortStore
from vesalius.platform.tables import lookup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vesalius.datasets.outcome import IngestReport
    from vesalius.datasets.phantom import CohortSettings
    from vesalius.infra.console import Terminal
    from vesalius.infra.reproduce.protocol import Finer, Protocol
    from vesalius.platform.store import Place

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """What the user named.

    Attributes:
        data: a prepared store or a raw folder; None makes phantoms.
        layout: of the raw folder.
        modality: of the raw folder; None takes the paper's, or the only one there is.
        masks: lesion masks to be set into held-out subjects.
    """

    data: Place | None = None
    layout: str | None = None
    modality: str | None = None
    masks: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Cohorts:
    """The stores of a reproduction.

    Attributes:
        reference: that all rows are judged on, and all but the finer ones trained on.
        finer: the same subjects on a finer grid, where a row asks for it and it can be made.
        level: that they are judged at; None for voxels alone.
        said: what it is, in a sentence.
        differs: what is not as in the paper.
    """

    reference: CohortStore
    finer: CohortStore | None
    level: Level | None
    said: str
    differs: tuple[str, ...] = ()


def check_request(request: DataRequest) -> str:
    """Return what is asked for: ``phantom``, ``store`` or ``raw``. Writes nothing.

    Raises:
        SettingError: the data are neither a store nor a folder, an option is missing, or one has nothing to act on.
    """
    if request.data is None:
        given = {"--layout": request.layout, "--modality": request.modality, "--masks": request.masks}
        extra = [flag for flag, value in given.items() if value is not None]
        if extra:
            raise SettingError(f"{' and '.join(extra)} need --data DIR: without it phantoms are generated")
        return "phantom"
    try:
        CohortStore.open(request.data)
    except StoreError as error:
        if not isinstance(request.data, Path) or (request.data / "manifest.json").exists():
            raise
        if not request.data.exists():
            raise SettingError(f"--data {request.data}: there is no such store or folder") from None
        if request.layout is None:
            raise SettingError(
                f"--data {request.data} is no cohort store; if it is a folder of raw scans, say how it is laid out "
                f"with --layout ({', '.join(LAYOUTS)})"
            ) from error
        lookup(LAYOUTS, request.layout, "layout")
        return "raw"
    extra = [flag for flag, value in (("--layout", request.layout), ("--modality", request.modality)) if value]
    if extra:
        raise SettingError(f"--data {request.data} is prepared already: leave out {' and '.join(extra)}")
    return "store"


def make_cohorts(
    terminal: Terminal,
    protocol: Protocol,
    out: Path,
    request: DataRequest,
    *,
    finer: Finer | None,
    phantom: CohortSettings | None = None,
    num_tasks: int = 0,
) -> Cohorts:
    """Find or make the stores below ``out``; what an earlier call made is reused.

    Args:
        terminal: where progress is shown.
        protocol: the paper's.
        out: folder.
        request: what the user named.
        finer: what the finest row asks for; None where no such row is wanted.
        phantom: other phantoms than the protocol's.
        num_tasks: Ray tasks that prepare subjects; 0 works in this process.

    Raises:
        SettingError: see :func:`check_request`.
        CohortError: there is nothing to learn from or to judge on; says what is missing.
    """
    kind = check_request(request)
    folder = out / "cohort"
    if kind == "store":
        store = CohortStore.open(request.data)  # type: ignore[arg-type]  # a store was named
        differs = ["a prepared store has one grid: the finer row is trained on it too"] if finer else []
        planted = _planted(terminal, store, request, folder / f"{protocol.name}-{store.digest[:8]}-lesions")
        return _described(protocol, planted, None, differs, "the store given")
    if kind == "phantom":
        settings = phantom or protocol.phantom
        recipe = protocol.phantom_recipe.recipe()
        # Of another recipe they are other phantoms: those that an older call made are not these.
        name = f"{protocol.name}-{digest(recipe.model_dump(mode='json'))[:8]}"
        reference = _phantoms(terminal, folder / name, settings, recipe, num_tasks)
        fine = None
        if finer is not None:
            shape = finer.phantom_shape if phantom is None else _half_more(settings.phantom.shape)
            denser = settings.model_copy(update={"phantom": settings.phantom.model_copy(update={"shape": shape})})
            fine = _phantoms(terminal, folder / f"{name}-finer", denser, recipe, num_tasks)
        what = "findings" if settings.findings else "planted lesions"
        differs = [f"generated heads with {what}, not scans", *protocol.phantom_differs]
        return _described(protocol, reference, fine, differs, "phantoms")
    recipe, differs = _recipe(protocol.recipe, request)
    reference = _raw(terminal, protocol, folder, request, recipe, num_tasks)
    fine = None
    if finer is not None:
        fine = _raw(terminal, protocol, folder, request, _recipe(finer.recipe, request)[0], num_tasks)
    if request.masks is not None:
        differs.append("lesions are real shapes set into real brains, not found in patients")
    return _described(protocol, reference, fine, differs, f"{request.data} by the recipe {protocol.recipe}")


def _phantoms(terminal: Terminal, store: Path, settings: CohortSettings, recipe: Recipe, num_tasks: int) -> CohortStore:
    root = write_cohort(store.with_name(f"{store.name}-phantom"), settings)
    with terminal.progress("make heads") as progress:
        report = ingest("phantom", root, store, recipe=recipe, name="phantom", num_workers=num_tasks, progress=progress)
    report.raise_for_failures()
    return CohortStore.open(store)


def _half_more(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    d, h, w = (edge * 3 // 2 for edge in shape)
    return (d, h, w)


def _recipe(name: str, request: DataRequest) -> tuple[Recipe, list[str]]:
    recipe = recipe_named(name)
    if request.masks is None or recipe.registration != "none":
        return recipe, []
    # The masks lie in MNI space, and so must what they are set into.
    changed = Recipe.model_validate({**recipe.model_dump(), "registration": "affine"})
    return changed, ["registered to MNI152, where the lesion masks lie; the paper registers nothing"]


def _raw(
    terminal: Terminal, protocol: Protocol, folder: Path, request: DataRequest, recipe: Recipe, num_tasks: int
) -> CohortStore:
    root = request.data
    assert isinstance(root, Path)  # check_request has looked
    assert request.layout is not None
    layout = lookup(LAYOUTS, request.layout, "layout")()
    modality = _modality(layout.modalities(root), protocol, request)
    key = digest([str(root), request.layout, modality, recipe.model_dump(mode="json")])[:8]
    path = folder / f"{protocol.name}-{key}"
    with terminal.progress("prepare") as progress:
        report = ingest(
            request.layout,
            root,
            path,
            recipe=recipe,
            modalities=(modality,),
            num_workers=num_tasks,
            name=root.name,
            progress=progress,
        )
    _say_failures(terminal, report)
    return _planted(terminal, CohortStore.open(path), request, path.with_name(f"{path.name}-lesions"))


def _modality(found: Sequence[str], protocol: Protocol, request: DataRequest) -> str:
    if request.modality is not None:
        return request.modality
    named = [name for name in protocol.modalities if name in found]
    if named:
        return named[0]
    if len(found) == 1:
        return found[0]
    raise SettingError(
        f"--data {request.data} holds {', '.join(found) or 'no image'} and not the paper's {protocol.modalities[0]}: "
        "choose one with --modality"
    )


def _say_failures(terminal: Terminal, report: IngestReport) -> None:
    for subject, reason in report.failed.items():
        terminal.warn(f"{subject} is left out: {reason}")
    if not report.added and not report.unchanged:
        report.raise_for_failures()


def _planted(terminal: Terminal, store: CohortStore, request: DataRequest, out: Path) -> CohortStore:
    """Return the store, or one with lesions where it has none and masks are given."""
    has = _has_lesions(store)
    if request.masks is None or has:
        if request.masks is not None:
            raise SettingError(f"{store.path} holds outlined lesions of its own: leave out --masks")
        return store
    with terminal.progress("lesions") as progress:
        plant_lesions(store, out, request.masks, progress=progress)
    return CohortStore.open(out)


def _has_lesions(store: CohortStore) -> bool:
    return any(record.has_lesion and "lesion" in record.arrays for record in store.subjects("test"))


def _described(
    protocol: Protocol, reference: CohortStore, finer: CohortStore | None, differs: Sequence[str], what: str
) -> Cohorts:
    counts = Counter(record.split for record in reference.subjects())
    missing = [split for split in _SPLITS if not counts[split]]
    if missing:
        raise CohortError(
            f"{reference.path} holds nobody in {' and '.join(missing)}: a table needs healthy subjects to train on, "
            "and others to choose thresholds and to be judged on"
        )
    level = level_of(protocol)
    if level is not None:
        level = level.on(reference)
        lacking = level.lacks(reference)
        if lacking is not None:
            raise CohortError(lacking)
        differs = [*differs, *([] if level.instead is None else [level.instead])]
    if level is None and not _has_lesions(reference):
        raise CohortError(
            f"{reference.path} holds no outlined lesion in its test split: set some in with --masks DIR (lesion masks "
            "in MNI space), or give data that have them"
        )
    lesions = sum(record.has_lesion for record in reference.subjects("test"))
    kind = "lesions" if level is None else "something in them"
    said = (
        f"{what}: {counts['train']} training, {counts['validation']} validation and {counts['test']} test subjects "
        f"({lesions} with {kind}), {', '.join(reference.channels)}, {grid_of(reference)}"
    )
    return Cohorts(reference=reference, finer=finer, level=level, said=said, differs=tuple(differs))


def grid_of(store: CohortStore) -> str:
    """Return the grid of a store's training subjects, as a person says it."""
    first = store.subjects("train")[0]
    grid = " x ".join(str(edge) for edge in first.shape)
    spacing = " x ".join(f"{edge:.3g}" for edge in first.spacing_mm)
    return f"{grid} voxels of {spacing} mm"


def facts_of(cohorts: Cohorts) -> dict[str, Any]:
    """Return what a document says of the stores."""
    return {
        "ours": cohorts.said,
        "differs": list(cohorts.differs),
        "store": str(cohorts.reference.path),
        "digest": cohorts.reference.digest,
        "finer_store": None if cohorts.finer is None else str(cohorts.finer.path),
    }
