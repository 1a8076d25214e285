"""The page of a server: a volume goes up, its map comes back over its slices."""

from __future__ import annotations

from vesalius.infra.pages.document import SERVING, page_policy, render_page

_STYLES = ("page", "serving")
_SOURCES = "connect-src 'self'"


def serving_page(*, with_token: bool) -> tuple[str, str]:
    """Return the page's HTML and the policy that is sent with it.

    Args:
        with_token: requests must bear a token, and the page asks for it. It stays in the page's memory.
    """
    html = render_page("serving", SERVING, styles=_STYLES, sources=_SOURCES, with_token=with_token)
    return html, f"{page_policy('serving', styles=_STYLES, sources=_SOURCES)}; frame-ancestors 'none'"
