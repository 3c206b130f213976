"""How text from an untrusted file is shown in an error message."""

from __future__ import annotations


def shown(value: object, most: int = 60) -> str:
    """``repr`` cut to ``most`` characters: control characters are escaped, and a name of a megabyte stays one line."""
    text = repr(value[: most + 1] if isinstance(value, str | bytes | list) else value)
    return text if len(text) <= most else text[: most - 3] + "..."
