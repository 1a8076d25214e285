"""``vesalius reproduce``: a paper's table, row by row, on the data and in the time there are."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from vesalius.infra.cli.options import DeviceOption, JsonOption, absolute, place
from vesalius.infra.console import Terminal


def reproduce(
    paper: Annotated[
        str, typer.Argument(metavar="PAPER", help="A paper, such as f_anogan_3d_2020; an unknown name lists them all.")
    ],
    rows: Annotated[
        list[str] | None,
        typer.Option("--row", metavar="ROW", help="A row as the paper prints it (default: all); may be repeated."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Time for each row, such as 20m: training and scoring (default: the paper's settings)."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="A prepared store, or with --layout a folder of raw scans (default: phantoms)."),
    ] = None,
    layout: Annotated[str | None, typer.Option(help="Of a raw folder; see `vesalius datasets`.")] = None,
    modality: Annotated[
        str | None, typer.Option(help="Of a raw folder (default: the paper's, or the only one there is).")
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(help="Lesion masks in MNI space to set into held-out subjects, where the data have no lesions."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the cohort, the runs, the table and the picture.")] = Path(
        "reproduced"
    ),
    scale: Annotated[
        Literal["preset", "epochs"],
        typer.Option(
            help="What a budget does to a row that is too long: take the method's demo preset and as many epochs as "
            "fit, or keep the paper's networks and cut the epochs alone (where memory and scoring allow; one volume "
            "is scored with the paper's settings to find out, however long that takes)."
        ),
    ] = "preset",
    at_once: Annotated[
        int,
        typer.Option(
            min=1,
            help="Rows side by side, each in a process of its own that shares the device. Cores are shared out evenly, "
            "and a run is of its number of threads: with another number, or other --row, rows begin anew.",
        ),
    ] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Ray Train workers of a row; 0 trains without Ray.")] = 0,
    device: DeviceOption = "auto",
    home: Annotated[Path | None, typer.Option(help="Folder of runs and models (default: OUT/home)")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train, score and judge each row of a PAPER's table, beside what the paper printed and two trivial baselines.

    With --budget, a row that would take longer on this machine takes its method's demo preset with as many epochs as
    fit, or with --scale epochs the paper's networks; what was scaled stands in its row. A large device has room for
    several rows --at-once. Raw scans are prepared by the paper's recipe; those of another modality, such as T1w for a
    paper of CT, need a store made by `vesalius ingest`. A table needs healthy training subjects and, in the test split,
    what it is about: outlined lesions; of whole images healthy and anomalous ones; of structures their labels, and
    where there are none of them whole images alone are judged. A row that fails says why and the others go on; the exit
    code is then 1. Stopped, the same command goes on where it was.
    """
    with Terminal(
        as_json, resume_hint="run the same command again, all its options included: what is finished is kept"
    ) as terminal:
        from vesalius.infra.reproduce import DataRequest
        from vesalius.infra.reproduce import reproduce as reproduce_table

        request = DataRequest(
            data=None if data is None else place(data),
            layout=layout,
            modality=modality,
            masks=None if masks is None else absolute(masks),
        )
        reproduce_table(
            terminal,
            paper,
            absolute(out),
            request,
            labels=rows or [],
            budget=budget,
            home=None if home is None else absolute(home),
            at_once=at_once,
            num_workers=workers,
            device=device,
            small="demo" if scale == "preset" else None,
        )
