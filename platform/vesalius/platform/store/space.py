"""Room on the disk: asked for before writing, and named in one sentence when it runs out in the middle."""

from __future__ import annotations

import contextlib
import errno
import shutil
from typing import TYPE_CHECKING

from vesalius.platform.errors import DiskSpaceError
from vesalius.platform.store.remote import RemotePath

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vesalius.platform.store.place import Place

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def require_space(path: Place, num_bytes: int) -> None:
    """Check that ``num_bytes`` can be written below ``path``, which need not exist yet; a URL cannot be asked.

    Raises:
        DiskSpaceError: less is free.
    """
    if isinstance(path, RemotePath):
        return
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < num_bytes:
        raise DiskSpaceError(
            f"{path}: {_megabytes(num_bytes)} are needed and {_megabytes(free)} are free on that disk: "
            "make room or choose another folder"
        )


@contextlib.contextmanager
def space_errors(path: Place) -> Iterator[None]:
    """Turn the operating system's "no space left" into a :class:`DiskSpaceError` naming ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskSpaceError(
            f"{path}: the disk or quota is full; nothing half-written is visible: make room and run the same again"
        ) from error


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
