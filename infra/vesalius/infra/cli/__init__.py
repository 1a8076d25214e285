"""The command ``vesalius``. Importing it imports neither torch nor Ray nor MLflow: each verb brings its own."""

from __future__ import annotations


def main() -> None:
    """Run the command line; the process ends with the verb's exit code."""
    import os
    import sys
    import warnings

    # A terminal that cannot draw a box or a degree sign should not turn a result into a traceback.
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
    # Figures are files here; without this a machine with a display may try to open windows.
    os.environ.setdefault("MPLBACKEND", "Agg")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # What libraries warn their callers of is for whoever writes a program, not for whoever runs this one;
    # `python -W default` or PYTHONWARNINGS brings it back.
    if not sys.warnoptions:
        warnings.simplefilter("ignore")

    from vesalius.infra.cli.app import app

    app(prog_name="vesalius")
