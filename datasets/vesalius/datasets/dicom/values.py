"""What the raw bytes of one tag say: text, numbers, a patient's digest. Nothing here fails, whatever the bytes."""

from __future__ import annotations

import hashlib
import math
import re

_REMOVED = re.compile(
    r"|[-x*?0]+|(anon|deident|de-ident|pseudon)\w*|removed|unknown|none|null|n/?a|patient|subject|test", re.IGNORECASE
)


def text_of(value: bytes) -> str:
    """Return bytes as one line of printable text of bounded length; letters beyond ASCII become question marks."""
    return "".join(chr(byte) if 32 <= byte < 127 else "?" for byte in value[:256].strip(b" \0\t\r\n"))


def whole_of(value: bytes, *, little: bool, signed: bool = False) -> int | None:
    """Return an unsigned or signed short, of which the first counts where there are several."""
    if len(value) < 2:
        return None
    return int.from_bytes(value[:2], "little" if little else "big", signed=signed)


def integer_of(text: str) -> int | None:
    """Return the first number as a whole one, or None where it is none or needs more than 32 bits."""
    number = first_of(numbers_of(text, 1))
    return int(number) if number is not None and abs(number) < 2**31 else None


def numbers_of(text: str, count: int) -> tuple[float, ...] | None:
    """Return that many finite numbers, or None: of one wanted the first counts where there are several."""
    parts = text.split("\\")
    if count == 1:
        parts = parts[:1]
    if len(parts) != count:
        return None
    try:
        numbers = tuple(float(part) for part in parts)
    except ValueError:
        return None
    return numbers if all(math.isfinite(number) for number in numbers) else None


def first_of(numbers: tuple[float, ...] | None) -> float | None:
    """Return the first number; None where there is none."""
    return numbers[0] if numbers else None


def padding_of(start: int | None, stop: int | None) -> tuple[int, int] | None:
    """Return the lowest and the highest value that means no measurement, of the padding's value and its range's end."""
    if start is None:
        return None
    return (start, start) if stop is None else (min(start, stop), max(start, stop))


def patient_of(identifier: str) -> str:
    """Return a digest of a patient's ID; nothing where it is one of the words that stand for a removed one."""
    return "" if _REMOVED.fullmatch(identifier) else hashlib.sha256(identifier.encode()).hexdigest()
