"""The verbs, their order and their examples."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from vesalius.infra.cli import (
    card,
    check,
    demo,
    down,
    evaluate,
    export,
    ingest,
    jobs,
    lesions,
    listings,
    promote,
    registry,
    reproduce,
    score,
    serve,
    status,
    study,
    train,
    tune,
    up,
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_show_locals=False,
    help=(
        "Learn healthy anatomy from 3D medical images, and see where a new volume departs from it.\n\n"
        "Start with [bold]vesalius demo[/bold]: it makes a small cohort, trains three methods on it and shows what "
        "they find."
    ),
    epilog="Every verb answers --help with an example, and --json with its result for a program.",
)

PREPARE, LEARN, LOOK_UP = "Prepare a cohort", "Learn and judge", "Look up and try"
CLUSTER = "Services and jobs"

VERBS: list[tuple[Callable[..., Any], str, str]] = [
    (ingest.ingest, PREPARE, "vesalius ingest bids data/ds002748 cohort --modality T1w --set recipe.spacing_mm=2"),
    (lesions.lesions, PREPARE, "vesalius lesions cohort cohort-lesions --masks masks --contrast -0.4 --seed 1"),
    (check.check, PREPARE, "vesalius check cohort --html cohort.html"),
    (export.export, PREPARE, "vesalius export cohort sub-01 --what lesion --out exported"),
    (train.train, LEARN, "vesalius train implicit_field cohort --set method.latent_dim=64 --workers 2"),
    (tune.tune, LEARN, "vesalius tune implicit_field cohort --trials 40 --space num_classes=4..16 --budget 8h"),
    (study.study, LEARN, "vesalius study STUDY --html study.html"),
    (score.score, LEARN, "vesalius score models:/brain@champion patient_T1w.nii.gz --out patient"),
    (evaluate.evaluate, LEARN, "vesalius evaluate RUN OTHER_RUN --split test --picture maps.png"),
    (promote.promote, LEARN, "vesalius promote RUN --name brain"),
    (registry.registry, LEARN, "vesalius registry brain champion"),
    (card.card, LEARN, "vesalius card models:/brain@champion --html card.html"),
    (serve.serve, LEARN, "vesalius serve models:/brain@champion --port 8000"),
    (reproduce.reproduce, LEARN, "vesalius reproduce anovaegan_2018 --row dAE --row AnoVAEGAN --budget 20m"),
    (up.up, CLUSTER, "vesalius up --home runs --cpus 2"),
    (status.status, CLUSTER, "vesalius status"),
    (down.down, CLUSTER, "vesalius down"),
    (jobs.submit, CLUSTER, "vesalius submit --workers 2 --follow -- train implicit_field cohort --preset tiny"),
    (jobs.jobs, CLUSTER, "vesalius jobs"),
    (jobs.logs, CLUSTER, "vesalius logs JOB --follow"),
    (jobs.stop, CLUSTER, "vesalius stop JOB"),
    (jobs.retry, CLUSTER, "vesalius retry JOB --follow"),
    (listings.methods, LOOK_UP, "vesalius methods implicit_field"),
    (listings.datasets, LOOK_UP, "vesalius datasets bids"),
    (demo.demo, LOOK_UP, "vesalius demo --out demo"),
]  # fmt: skip

# What follows the verb of a job is the verb's, options too, with or without the two dashes before it.
SETTINGS: dict[str, dict[str, Any]] = {"submit": {"allow_interspersed_args": False}}

for function, panel, example in VERBS:
    app.command(
        function.__name__,
        rich_help_panel=panel,
        epilog=f"Example:  [bold]{example}[/bold]",
        context_settings=SETTINGS.get(function.__name__),
    )(function)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"vesalius {version('vesalius')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Hold the options that stand before a verb; Typer shows the application's own help text."""
