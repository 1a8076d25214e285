"""What every page is: one file, its style and script inside it, all that comes from data escaped."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vesalius.platform.errors import SettingError
from vesalius.platform.store import require_space, space_errors
from vesalius.platform.store.files import write_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_TEMPLATES = Path(__file__).parent / "templates"
QUALITY = "Vesalius quality page"
STUDY = "Vesalius study page"
CARD = "Vesalius model card"
SERVING = "Vesalius upload page"


def page_path(out: Path, generator: str = QUALITY) -> Path:
    """Return the file a page is written to: ``out`` where it is named .html, else ``out/index.html``.

    Args:
        out: as given.
        generator: of the page, by which an earlier one is known.

    Raises:
        SettingError: something that is not a page of this kind is there.
    """
    is_file_name = out.suffix.lower() in (".html", ".htm")
    if not is_file_name and out.exists() and not out.is_dir():
        raise SettingError(f"{out} is a file: give a folder for the page, or a name that ends in .html")
    path = out if is_file_name else out / "index.html"
    if path.is_dir():
        raise SettingError(f"{path} is a folder: give another name for the page")
    if path.exists() and generator.encode() not in path.read_bytes()[:4096]:
        raise SettingError(f"{path} exists and is not a page of this kind: give another place with --html")
    return path


def write_page(path: Path, text: str) -> int:
    """Write a page, complete or absent, and return its size in bytes.

    Raises:
        DiskSpaceError: there is no room.
    """
    content = text.encode()
    require_space(path.parent, len(content))
    with space_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content, path.parent)
    return len(content)


def render_page(
    template: str,
    generator: str,
    /,
    *,
    styles: Sequence[str],
    filters: Mapping[str, Callable[..., Any]] | None = None,
    sources: str = "",
    **values: Any,
) -> str:
    """Return a page's HTML. Everything that comes from data is escaped; no style, script or address comes from it.

    Args:
        template: its name, and that of its script where it has one.
        generator: of the page.
        styles: names of style sheets, in their order.
        filters: of the template.
        sources: further directives of the page's policy, such as ``connect-src 'self'`` for one that a server sends.
        **values: of the template.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters or {})
    style, script = _style(styles), _script(template)
    return environment.get_template(f"{template}.html.j2").render(
        generator=generator,
        style=Markup(style),
        script=Markup(script),
        policy=page_policy(template, styles=styles, sources=sources),
        **values,
    )


def page_policy(template: str, *, styles: Sequence[str], sources: str = "") -> str:
    """Return what a page may do, as a content security policy: run its own script and no other, and reach nothing.

    Args:
        template: its name.
        styles: names of its style sheets, in their order.
        sources: further directives.
    """
    return (
        f"default-src 'none'; img-src data:; style-src {_hash(_style(styles))}; script-src {_hash(_script(template))}; "
        "base-uri 'none'; form-action 'none'" + (f"; {sources}" if sources else "")
    )


def _style(styles: Sequence[str]) -> str:
    return "".join((_TEMPLATES / f"{one}.css").read_text() for one in styles)


def _script(template: str) -> str:
    own = _TEMPLATES / f"{template}.js"
    return own.read_text() if own.is_file() else ""


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
