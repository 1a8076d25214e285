"""``vesalius lesions``: exact ground truth on real anatomy."""

from pathlib import Path
from typing import Annotated

import typer

from vesalius.infra.cli.options import JsonOption, StoreArgument, absolute
from vesalius.infra.console import Terminal


def lesions(
    store: StoreArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The store to make.")],
    masks: Annotated[Path, typer.Option(help="Folder of lesion masks (NIfTI) in the space of the store.")],
    contrast: Annotated[float, typer.Option(help="Relative change of intensity inside; -0.4 is 40 % darker.")] = -0.4,
    seed: Annotated[int, typer.Option(min=0, help="Which mask goes to which subject, and the texture.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Set real lesion shapes into the held-out healthy volumes of STORE and write them to OUT.

    Soft borders and texture, inside the brain only; what was set where is recorded with each subject.
    """
    with Terminal(as_json) as terminal:
        from vesalius.datasets import synthetic_lesions

        with terminal.progress("lesions") as progress:
            synthetic_lesions.plant(
                absolute(store), absolute(out), masks=absolute(masks), contrast=contrast, seed=seed, progress=progress
            )
