"""How a file says that its pixels are encoded (its transfer syntax), and what can be decoded exactly.

Lossless encodings give back the very numbers that were stored. Lossy ones do not: what they change is as large as what
is looked for, and two decoders need not agree on it. So they are named and refused.
"""

from __future__ import annotations

BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
RUN_LENGTH = "1.2.840.10008.1.2.5"

_PLAIN = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", BIG_ENDIAN})
_LOSSLESS = frozenset(
    {
        "1.2.840.10008.1.2.4.57",  # JPEG lossless, any predictor
        "1.2.840.10008.1.2.4.70",  # JPEG lossless, first-order prediction: what most archives have
        "1.2.840.10008.1.2.4.80",  # JPEG-LS lossless
        "1.2.840.10008.1.2.4.90",  # JPEG 2000 lossless
    }
)
_LOSSY = frozenset(
    {
        "1.2.840.10008.1.2.4.50",  # JPEG baseline
        "1.2.840.10008.1.2.4.51",  # JPEG extended
        "1.2.840.10008.1.2.4.81",  # JPEG-LS near-lossless
        "1.2.840.10008.1.2.4.91",  # JPEG 2000
        "1.2.840.10008.1.2.4.203",  # High-Throughput JPEG 2000
    }
)


def syntax_problem(syntax: str) -> str | None:
    """Return why pixels of a transfer syntax cannot be used, as a clause; None where they can."""
    if not is_compressed(syntax) or syntax == RUN_LENGTH or syntax in _LOSSLESS:
        return None
    name = uid_name(syntax) or "an unknown encoding"
    if syntax in _LOSSY:
        return (
            f"has its pixels compressed as {name}, which loses what was measured: get the series as the scanner sent it"
        )
    return f"has its pixels compressed as {name}, which cannot be decoded here: decompress them first (gdcmconv --raw)"


def is_compressed(syntax: str) -> bool:
    """Return whether pixels of a transfer syntax are stored in another form than as plain numbers."""
    return syntax not in _PLAIN


def uid_name(uid: str) -> str:
    """Return what the standard calls a UID; nothing where it does not know it."""
    from pydicom.config import IGNORE
    from pydicom.uid import UID

    name = UID(uid, validation_mode=IGNORE).name
    return "" if name == uid else name
