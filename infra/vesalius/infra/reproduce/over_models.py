"""AUROC over models: against parameters, memory and patch size (Bieder et al. 2022, figures 3 and 7)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vesalius.infra.figures import Curve, CurvePanel, CurvePoint, draw_curves
from vesalius.infra.reproduce.levels import SPLIT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vesalius.infra.reproduce.protocol import Protocol
    from vesalius.infra.reproduce.sizes import Size
    from vesalius.platform.evaluation import Interval


@dataclass(frozen=True, kw_only=True)
class Model:
    """A row, as these curves see it.

    Attributes:
        size: of its model.
        aurocs: AUROC and its interval by question; None where there is none.
    """

    size: Size
    aurocs: Mapping[str, tuple[float | None, Interval | None]]


def draw_over_models(
    models: Sequence[Model], out: Path, protocol: Protocol, *, questions: Sequence[str], panels: Sequence[str]
) -> dict[str, Path]:
    """Draw figures 3 and 7: over widths at the patch size of most models, and the other way round.

    Over widths twice: against parameters, as figure 3, and against the memory that training took. Of fewer than two
    widths, or sizes of patches, nothing is drawn.

    Args:
        models: rows that came to their end.
        out: folder of the PNGs.
        protocol: the paper's; it names them.
        questions: keys of the models' AUROCs, the curves over patch sizes.
        panels: those of them that are drawn over widths, each with a curve a kind of model.

    Returns:
        Files by what they show.
    """
    name, title = protocol.name, protocol.title.partition(",")[0]
    sizes = [model.size for model in models]
    drawn: dict[str, Path] = {}
    patch_size, width = _commonest(sizes, "patch_size"), _commonest(sizes, "width", patched=True)
    over_width = [model for model in models if model.size.width and model.size.patch_size in (None, patch_size)]
    widths = f"m = {_span(model.size.width for model in over_width)}"
    of_patches = "" if patch_size is None else f"; patches of {patch_size} voxels"
    for across, axis in (("parameters", "parameters"), ("memory_bytes", "peak memory of training in MiB")):
        fit = [model for model in over_width if getattr(model.size, across)]
        if len({model.size.width for model in fit}) < 2:
            continue
        word = across.partition("_")[0]
        drawn[word] = draw_curves(
            [CurvePanel(title=question, curves=_by_kind(fit, across, question)) for question in panels],
            out / f"{name}-{word}.png",
            title=f"{title}: AUROC against {axis}, {SPLIT} split",
            caption=f"A point a model, {widths}{of_patches}. Bars: 95 %, bootstrap over subjects. Dotted: chance.",
            across=axis,
            logarithmic=True,
        )
    over_patches = [model for model in models if model.size.patch_size and model.size.width == width]
    # Calibrated models are others: a curve is of one kind.
    kind = _commonest([model.size for model in over_patches], "kind")
    over_patches = [model for model in over_patches if model.size.kind == kind]
    if len({model.size.patch_size for model in over_patches}) > 1:
        curves = tuple(
            Curve(name=question, points=_points(over_patches, "patch_size", question)) for question in questions
        )
        drawn["patch size"] = draw_curves(
            [CurvePanel(title="", curves=curves)],
            out / f"{name}-patches.png",
            title=f"{title}: AUROC against patch size",
            caption=f"{SPLIT} split, m = {width}. Bars: 95 %, bootstrap over subjects. Dotted: chance.",
            across="edge of a patch in voxels",
        )
    return drawn


def _commonest(sizes: Sequence[Size], key: str, *, patched: bool = False) -> Any:
    """Return the value that most models have; None where none has one. With ``patched``, of those that take patches."""
    counted = [size for size in sizes if not patched or size.patch_size is not None]
    values = Counter(value for size in counted if (value := getattr(size, key)) is not None)
    return values.most_common(1)[0][0] if values else None


def _span(values: Any) -> str:
    return ", ".join(str(value) for value in sorted(set(values)))


def _points(models: Sequence[Model], across: str, question: str) -> tuple[CurvePoint, ...]:
    """Return a point for each value across; of rows that are one model by two names the first is drawn."""
    points: dict[tuple[float, int], CurvePoint] = {}
    for model in models:
        (auroc, interval), x = model.aurocs[question], getattr(model.size, across)
        if across == "memory_bytes":
            x = x / 2**20
        if auroc is not None:
            points.setdefault((x, model.size.parameters), CurvePoint(x=x, y=auroc, interval=interval))
    return tuple(points.values())


def _by_kind(models: Sequence[Model], across: str, question: str) -> tuple[Curve, ...]:
    kinds = dict.fromkeys(model.size.kind for model in models)
    curves = []
    for kind in kinds:
        of_kind = [model for model in models if model.size.kind == kind]
        curves.append(Curve(name=kind, points=_points(of_kind, across, question)))
    return tuple(curves)
