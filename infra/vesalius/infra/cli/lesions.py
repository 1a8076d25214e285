"""``vesalius lesions``: exact ground truth on real anatomy."""

from pathlib import Path
from typing import Annotated

import typer

from vesalius.infra.cli.options import JsonOption, SetOption, StoreArgument, absolute, changes, place
from vesalius.infra.console import Terminal


def lesions(
    store: StoreArgument,
    out: Annotated[str, typer.Argument(metavar="OUT", help="The store to make: a folder or a URL.")],
    masks: Annotated[Path, typer.Option(help="Folder of lesion masks (NIfTI) in MNI space.")],
    contrast: Annotated[
        float | None, typer.Option(help="Relative change of intensity inside (default: -0.4, 40 % darker)")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Which mask goes to which subject (default: 0)")] = None,
    assignments: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set real lesion shapes into the held-out healthy volumes of STORE, which lies in MNI space, and write OUT.

    Soft borders and texture, inside the brain only; what was set where is recorded with each subject. Training
    subjects are copied as they are. Settings are `lesions.KEY` (contrast, softness_mm, texture, healthy_fraction, ...).
    """
    with Terminal(as_json) as terminal:
        from pydantic import create_model

        from vesalius.datasets.lesions import PlantingSettings, plant_lesions
        from vesalius.infra import tables
        from vesalius.platform.config import Settings, override
        from vesalius.platform.store import CohortStore

        values = changes(assignments, {"lesions.contrast": contrast, "lesions.seed": seed})
        kind = create_model("LesionSettings", __base__=Settings, lesions=(PlantingSettings, PlantingSettings()))
        settings = override(kind(), values).model_dump()["lesions"]
        cohort = CohortStore.open(place(store))
        with terminal.progress("lesions") as progress:
            report = plant_lesions(cohort, place(out), absolute(masks), **settings, progress=progress)
        rows: list[tuple[str, object]] = [
            ("store", report.store),
            ("with a lesion", len(report.planted)),
            ("kept healthy", len(report.healthy)),
            ("copied", len(report.copied)),
            ("digest", report.digest),
        ]
        document = {**report.model_dump(mode="json"), "settings": settings}
        terminal.result(document, tables.key_values(rows), tables.pairs("planted", report.planted))
