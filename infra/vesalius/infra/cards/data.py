"""Sections on data: what varies, what it learnt from, what it was judged on, whom it may treat unequally."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vesalius.infra.cards.details import recipe_rows
from vesalius.infra.cards.document import Section, Table
from vesalius.infra.pages.overview import split_order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vesalius.infra.cards.writing import CardSources
    from vesalius.platform.store import SubjectRecord

_GONE = "The store cannot be read any more, or has changed since: what was in it is known by its digest alone."
_MOST_VALUES = 12
_PERSONAL = ("age", "sex", "gender", "ethnicity", "race", "site", "scanner")


def factors(sources: CardSources) -> Section:
    """What is known of the subjects by which performance could differ."""
    if sources.store is None:
        return Section(title="Factors", sentences=(_GONE,))
    records = sources.store.subjects()
    rows = _known(records)
    if not rows:
        told = "The cohort states neither groups, labels nor demographics: performance cannot be told apart by any."
        return Section(title="Factors", sentences=(told,))
    table = Table(title="What the cohort states of its subjects", heads=("factor", "known of", "values"), rows=rows)
    judged = sorted({subgroup.name for subgroup in sources.subgroups})
    told = f"Judged apart: {', '.join(judged)}." if judged else "No subgroup was judged apart."
    return Section(title="Factors", sentences=(told,), tables=(table,))


def training_data(sources: CardSources) -> Section:
    """What it learnt from, and how that was prepared."""
    cohort = sources.model.cohort
    facts = [
        ("Subjects", str(len(cohort.subjects))),
        ("Modalities", ", ".join(cohort.channels)),
        ("Grid", " x ".join(map(str, cohort.grid)) + " voxels"),
        ("Voxel size", " x ".join(f"{edge:g}" for edge in cohort.spacing_mm) + " mm"),
        ("Cohort digest", cohort.digest),
    ]
    recipe = recipe_rows(sources.model.recipe)
    table = Table(title="Recipe that prepared every volume", heads=("setting", "value"), rows=recipe)
    sentences = [] if sources.store is not None else [_GONE]
    return Section(
        title="Training Data", sentences=tuple(sentences), facts=tuple(facts), tables=(table,) if recipe else ()
    )


def evaluation_data(sources: CardSources) -> Section:
    """The splits, and which of them have figures."""
    if sources.store is None:
        return Section(title="Evaluation Data", sentences=(_GONE,))
    records = sources.store.subjects()
    uses = {
        "train": "learnt from",
        "validation": "thresholds and checkpoints chosen on it",
        "gate": "promotion decided on it",
        "test": "reported, nothing chosen on it",
    }
    rows = []
    for split in sorted({record.split for record in records}, key=split_order):
        own = [record for record in records if record.split == split]
        lesions = [record for record in own if record.has_lesion]
        outlined = sum("lesion" in record.arrays for record in lesions)
        judged = "yes" if split in sources.figures else "no"
        rows.append((split, str(len(own)), str(len(lesions)), str(outlined), judged, uses.get(split, "")))
    heads = ("split", "subjects", "anomalous", "outlined", "figures below", "use")
    told = "All splits come from the same cohort: nothing here says how it does on volumes from elsewhere."
    return Section(title="Evaluation Data", sentences=(told,), tables=(Table(heads=heads, rows=tuple(rows)),))


def ethical_considerations(sources: CardSources) -> Section:
    """What is known of the people behind the data, and what is not."""
    if sources.store is None:
        return Section(title="Ethical Considerations", sentences=(_GONE,))
    trained = set(sources.model.cohort.subjects)
    records = [record for record in sources.store.subjects() if record.subject_id in trained]
    known = {key.partition(".")[2].lower() for key, _, _ in _known(records) if key.startswith("demographics.")}
    missing = [name for name in ("age", "sex") if name not in known and not (name == "sex" and "gender" in known)]
    sentences = []
    if missing:
        sentences.append(
            f"The cohort does not state {' or '.join(missing)} of the training subjects: whether the model treats "
            "people unequally by it cannot be told."
        )
    rows = tuple(row for row in _known(records) if row[0].partition(".")[2].lower() in _PERSONAL or row[0] == "group")
    tables = (Table(title="Training subjects", heads=("factor", "known of", "values"), rows=rows),) if rows else ()
    sentences.append("The card names no subject. The model's file holds the training subjects' ids.")
    return Section(title="Ethical Considerations", sentences=tuple(sentences), tables=tables)


def _known(records: Sequence[SubjectRecord]) -> tuple[tuple[str, str, str], ...]:
    """Return by factor how many subjects it is known of, and its values."""
    values: dict[str, list[Any]] = {}
    for record in records:
        own: dict[str, Any] = {} if record.group is None else {"group": record.group}
        own |= {f"labels.{key}": value for key, value in record.labels.items()}
        own |= {f"demographics.{key}": value for key, value in record.demographics.items() if value is not None}
        for key, value in own.items():
            values.setdefault(key, []).append(value)
    return tuple((key, f"{len(own)} of {len(records)}", _told(own)) for key, own in values.items())


def _told(values: Sequence[Any]) -> str:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == len(values) and len(set(numbers)) > 2:
        middle = sorted(numbers)[len(numbers) // 2]
        return f"{min(numbers):g} to {max(numbers):g}, median {middle:g}"
    counts: dict[str, int] = {}
    for value in values:
        counts[str(value)] = counts.get(str(value), 0) + 1
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    if len(most) > _MOST_VALUES:
        return f"{len(most)} different values"
    return ", ".join(f"{value} ({count})" for value, count in most)
