"""Secrets and personal data: patterns with a check sum, or a form that nothing else has."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from localsft.data.check.finding import Collector, DataFinding, RowChecks
from localsft.data.conversation import Conversation

# Tokens that their makers gave a prefix so that they are found: the prefix, which is looked for first, and the whole form.
_SECRETS = tuple(
    (start, re.compile(form))
    for start, form in (
        ("PRIVATE KEY-----", r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
        ("AKIA", r"\bAKIA[A-Z2-7]{16}\b"),  # AWS; "…EXAMPLE" is the documentation's own
        ("ASIA", r"\bASIA[A-Z2-7]{16}\b"),
        ("gh", r"\bgh[pousr]_[A-Za-z0-9]{36}\b"),  # GitHub
        ("github_pat_", r"\bgithub_pat_\w{60,}"),
        ("glpat-", r"\bglpat-[\w-]{20,}"),  # GitLab
        ("sk-", r"\bsk-(?:proj-|ant-|svcacct-)?[A-Za-z0-9_-]{32,}"),  # OpenAI, Anthropic
        ("hf_", r"\bhf_[A-Za-z0-9]{34,}\b"),  # Hugging Face
        ("xox", r"\bxox[abprs]-[A-Za-z0-9-]{20,}"),  # Slack
        ("hooks.slack.com/", r"hooks\.slack\.com/services/T\w{8,}/B\w{8,}/\w{20,}"),
        ("AIza", r"\bAIza[\w-]{35}\b"),  # Google
        ("_live_", r"\b[rs]k_live_[A-Za-z0-9]{24,}\b"),  # Stripe
        ("npm_", r"\bnpm_[A-Za-z0-9]{36}\b"),
        ("pypi-", r"\bpypi-AgEIcHlwaS5vcmc[\w-]{50,}"),
        ("SG.", r"\bSG\.[\w-]{22}\.[\w-]{43}\b"),  # SendGrid
        ("eyJ", r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{20,}"),  # JSON web tokens
        ("://", r"\b[a-z][a-z0-9+]{2,20}://[\w.-]{1,60}:(?![^@\s]*[<>{$*])[^\s:/@\"']{6,80}@[\w-]+\.[\w.-]+"),  # a password in an address
    )
)
_EMAIL = re.compile(r"(?<![\w.+-])[\w+-][\w.+-]*@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b")
_RESERVED = ("example", "test", "invalid", "localhost")  # RFC 2606 and 6761: nobody's addresses
_PHONE = re.compile(r"(?<![\w+*/^-])\+[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d(?:[ .-]?\d){6,11}(?!\w)")
_MANY_DIGITS = re.compile(r"\d[ -]?\d[ -]?\d[ -]?\d[ -]?\d[ -]?\d[ -]?\d[ -]?\d[ -]?\d[ -]?\d[ -]?\d[ -]?\d[ -]?\d")
_CARD = re.compile(r"(?<![\w.,+-])(?<!\d )(?:\d{4}([ -]?)\d{4}\1\d{4}\1\d{1,7}|3\d{3}([ -]?)\d{6}\2\d{5})(?![\w-])(?![.,]\d)(?! \d)")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")


class PrivateChecks(RowChecks):
    """Kinds of private data. What was seen is shown only in part."""

    def __init__(self) -> None:
        super().__init__()
        self._secret = self.collector(
            "secret", "error", "a row holds a key, a token or a password, which the model could repeat", "revoke it, and remove it"
        )
        self._email = self.collector("e-mail", "warning", "e-mail addresses", "replace those of persons by invented ones, at example.com")
        self._phone = self.collector("phone", "warning", "telephone numbers", "replace those of persons by invented ones")
        self._card = self.collector("card", "warning", "numbers of payment cards (with their check digit)", "replace them")
        self._iban = self.collector("iban", "warning", "bank accounts (IBANs with their check digits)", "replace them")

    def add(self, conversation: Conversation) -> None:
        text = "\n".join([message.content or "" for message in conversation.messages])
        source = conversation.source
        if found := [
            match[0] for start, form in _SECRETS if start in text for match in form.finditer(text) if not is_placeholder(match[0])
        ]:
            self._secret.add(source, f"{found[0][:8]}…", len(found))
        if "@" in text:
            _add(self._email, source, _EMAIL, text, lambda address: not _reserved(address), lambda a: f"{a[:2]}…@{a.partition('@')[2]}")
        if "+" in text:
            _add(self._phone, source, _PHONE, text, lambda number: True, lambda number: f"{number[:5]}…")
        if _MANY_DIGITS.search(text):
            _add(self._card, source, _CARD, text, is_card, lambda number: f"{number[:4]}…")
        if any(character.isdigit() for character in text):
            _add(self._iban, source, _IBAN, text, is_iban, lambda number: f"{number[:4]}…")

    def findings(self) -> Iterable[DataFinding]:
        yield from self._secret.findings()
        for what in (self._email, self._phone, self._card, self._iban):
            for finding in what.findings():
                yield from what.findings(message=f"{finding.message}, {what.items:,} in all")


def _add(
    rows: Collector, source: str, form: re.Pattern[str], text: str, counts: Callable[[str], bool], shown: Callable[[str], str]
) -> None:
    if found := [match[0] for match in form.finditer(text) if counts(match[0])]:
        rows.add(source, shown(found[0]), len(found))


def is_placeholder(secret: str) -> bool:
    """Whether it is no secret but stands for one: "EXAMPLE", "your-key", "xxxx"; or so few different characters as chance never gives."""
    plain = secret.lower()
    return any(word in plain for word in ("example", "your", "placeholder", "xxxx", "****", "1234567890", "abcdef")) or (
        len(set(plain[4:])) < 8 and not secret.startswith("-----")
    )


def is_card(text: str) -> bool:
    """Whether the digits are a card's: a network's first digits, its length, and the check digit of ISO/IEC 7812 (Luhn)."""
    digits = [int(c) for c in text if c.isdigit()]
    number = "".join(map(str, digits))
    networks = (r"4(\d{12}|\d{15}|\d{18})", r"(5[1-5]|2[2-7])\d{14}", r"3[47]\d{13}", r"6(011|5\d\d)\d{12}", r"35\d{14}")
    if len(set(digits)) < 3 or not any(re.fullmatch(network, number) for network in networks):
        return False
    return sum(d if i % 2 == 0 else (2 * d - 9 if d > 4 else 2 * d) for i, d in enumerate(reversed(digits))) % 10 == 0


def is_iban(text: str) -> bool:
    """Whether the check digits of ISO 13616 are right (mod 97)."""
    text = text.replace(" ", "")
    return 15 <= len(text) <= 34 and int("".join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 == 1


def _reserved(address: str) -> bool:
    labels = address.partition("@")[2].lower().split(".")
    return labels[-1] in _RESERVED or (len(labels) > 1 and labels[-2] == "example")
