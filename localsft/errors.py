"""The errors that localsft raises on purpose.

Each carries one sentence for a person: what is wrong, where (file, line or flag), and what to do next.
Only ``localsft.cli`` turns them into exit codes; ``exit_code`` here is the documented mapping of the command line.
"""

from __future__ import annotations


class LocalsftError(Exception):
    """Base of every deliberate error; ``str(error)`` is the whole message for the user."""

    exit_code = 2


class UsageError(LocalsftError):
    """A flag, a config key or a combination of them that can't be carried out (exit 2)."""


class InputError(LocalsftError):
    """A file or folder whose content can't be used: data, weights, tokenizer, template (exit 2)."""


class Finding(LocalsftError):
    """The command ran and found a problem it exists to find: data check, gate, verify (exit 1)."""

    exit_code = 1


class Refused(LocalsftError):
    """Possible but refused: would not fit, untrusted file, would destroy something (exit 3)."""

    exit_code = 3


class NotMeasured(LocalsftError):
    """A figure that was asked for could not be measured (exit 4)."""

    exit_code = 4


class MissingPart(UsageError):
    """An optional package or program is absent; the message says how to get it (exit 2)."""
