"""The quality page: what stands out first, then every subject, in one file without a network."""

from __future__ import annotations

import base64
import datetime
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vesalius.datasets.quality.report import TITLES
from vesalius.infra.pages.cards import MEASURES, card
from vesalius.infra.pages.overview import demographics_table, rules, split_order, strips
from vesalius.platform.errors import SettingError
from vesalius.platform.store import require_space, space_errors
from vesalius.platform.store.files import write_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vesalius.datasets.quality import CohortQuality
    from vesalius.infra.pages.slices import Slices
    from vesalius.platform.store import CohortStore

_TEMPLATES = Path(__file__).parent / "templates"
_GENERATOR = "Vesalius quality page"


def page_path(out: Path) -> Path:
    """Return the file a page is written to: ``out`` where it is named .html, else ``out/index.html``.

    Raises:
        SettingError: something that is not a page of ours is there.
    """
    is_file_name = out.suffix.lower() in (".html", ".htm")
    if not is_file_name and out.exists() and not out.is_dir():
        raise SettingError(f"{out} is a file: give a folder for the page, or a name that ends in .html")
    path = out if is_file_name else out / "index.html"
    if path.is_dir():
        raise SettingError(f"{path} is a folder: give another name for the page")
    if path.exists() and _GENERATOR.encode() not in path.read_bytes()[:4096]:
        raise SettingError(f"{path} exists and is not a page of this kind: give another place with --html")
    return path


def write_quality_page(
    path: Path,
    store: CohortStore,
    quality: CohortQuality,
    slices: Mapping[str, Slices],
    *,
    common_outline: str = "",
    problems: Sequence[str] | None = None,
) -> int:
    """Write the page, complete or absent, and return its size in bytes.

    Args:
        path: see :func:`page_path`.
        store: the cohort.
        quality: what quality control says of it.
        slices: pictures by subject id.
        common_outline: SVG path of the cohort's common brain over every picture of the same size.
        problems: what re-reading the store against its checksums found; None where it was not re-read.

    Raises:
        DiskSpaceError: there is no room.
    """
    content = render(store, quality, slices, common_outline=common_outline, problems=problems).encode()
    require_space(path.parent, len(content))
    with space_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content, path.parent)
    return len(content)


def render(
    store: CohortStore,
    quality: CohortQuality,
    slices: Mapping[str, Slices],
    *,
    common_outline: str = "",
    problems: Sequence[str] | None = None,
) -> str:
    """Return the page's HTML. Everything that comes from data is escaped; no style, script or address comes from it."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["begun"] = _begun
    style, script = ((_TEMPLATES / name).read_text() for name in ("quality.css", "quality.js"))
    outliers = [card(subject, quality, slices, number) for number, subject in enumerate(quality.outliers)]
    others = [subject for subject in quality.subjects if not subject.findings]
    splits: dict[str, int] = {}
    for subject in sorted(quality.subjects, key=lambda one: split_order(one.split)):
        splits[subject.split] = splits.get(subject.split, 0) + 1
    return environment.get_template("quality.html.j2").render(
        generator=_GENERATOR,
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
        name=store.name or store.path.name,
        path=str(store.path),
        digest=store.digest,
        channels=store.channels,
        written=datetime.datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
        quality=quality,
        splits=splits,
        groups=sorted({subject.group for subject in quality.subjects if subject.group}),
        demographics=demographics_table(quality.subjects),
        problems=problems,
        outliers=outliers,
        others=[card(subject, quality, slices, len(outliers) + number) for number, subject in enumerate(others)],
        num_alarms=sum(subject.alarm for subject in quality.subjects),
        strips=strips(quality),
        measures=MEASURES,
        titles=TITLES,
        frame={"template": "one grid in MNI space", "grid": "one grid", "own": "grids of their own"}[quality.frame],
        limits=rules(quality),
        common_outline=common_outline,
        has_lesions=any(one.lesion for one in slices.values()),
    )


def _begun(sentence: str) -> str:
    """Return a clause as the beginning of a sentence; what begins with a file's or a channel's name keeps it."""
    first = sentence.split(" ", 1)[0]
    return sentence[:1].upper() + sentence[1:] if first in ("it", "its", "the", "half") else sentence


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
