"""Tables for people: settings, listings and figures. Each takes the very document that ``--json`` prints.

::

    frames.py      the house style; names with sentences, keys with values
    choices.py     settings, presets, the steps of a paper
    forecasts.py   what a run would take
    reproduction.py  a paper's table with ours beside it
    studies.py     trials, importance, seeds
    judgements.py  figures, image scores, readers, the gate
    registered.py  registered models, versions, decisions, gates
    services.py    services and jobs
    volumes.py     exported files, outliers
"""

from __future__ import annotations

from vesalius.infra.tables.choices import describe_settings, deviations, memory, paper_steps, presets, settings
from vesalius.infra.tables.forecasts import forecast
from vesalius.infra.tables.frames import as_time, heading, key_values, listing, pairs, plain_text
from vesalius.infra.tables.judgements import figures, figures_title, gate, image_scores, promotion, readers
from vesalius.infra.tables.registered import decisions, registered, verdicts, version, versions
from vesalius.infra.tables.reproduction import PaperTable, row_notes
from vesalius.infra.tables.services import jobs, services, services_notes
from vesalius.infra.tables.studies import importance, seeds, trials
from vesalius.infra.tables.volumes import exported, findings, scored_volumes

__all__ = [
    "PaperTable",
    "as_time",
    "decisions",
    "describe_settings",
    "deviations",
    "exported",
    "figures",
    "figures_title",
    "findings",
    "forecast",
    "gate",
    "heading",
    "image_scores",
    "importance",
    "jobs",
    "key_values",
    "listing",
    "memory",
    "pairs",
    "paper_steps",
    "plain_text",
    "presets",
    "promotion",
    "readers",
    "registered",
    "row_notes",
    "scored_volumes",
    "seeds",
    "services",
    "services_notes",
    "settings",
    "trials",
    "verdicts",
    "version",
    "versions",
]
