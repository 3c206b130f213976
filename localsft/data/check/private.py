"""Secrets and personal data: patterns with a check sum, or a form that nothing else has."""

from __future__ import annotations

import re
from collections.abc import Iterable

from localsft.data.check.finding import Collector, DataFinding
from localsft.data.conversation import Conversation

_SECRET = re.compile(
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}\b|\bgithub_pat_\w{60,}"
    r"|\bsk-(?:proj-|ant-)?[A-Za-z0-9_-]{32,}|\bxox[abprs]-[A-Za-z0-9-]{20,}|\bAIza[\w-]{35}\b"
    r"|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{20,}"
)
_EMAIL = re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.([A-Za-z]{2,})\b")
_RESERVED = ("example", "test", "invalid", "localhost")  # RFC 2606 and 6761: nobody's addresses
_PHONE = re.compile(r"(?<![\w+])\+[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d(?:[ .-]?\d){6,11}(?!\w)")
_CARD = re.compile(r"(?<![\w-])(?:\d[ -]?){12,18}\d(?![\w-])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")


class PrivateChecks:
    """One row after the other, then ``findings``. What was seen is shown only in part."""

    def __init__(self) -> None:
        self._secret = Collector(
            "secret", "error", "a row holds a key or a token, which the model could repeat", "revoke it, and remove it"
        )
        self._email = Collector("e-mail", "warning", "e-mail addresses", "replace those of persons by invented ones, at example.com")
        self._phone = Collector("phone", "warning", "telephone numbers", "replace those of persons by invented ones")
        self._card = Collector("card", "warning", "numbers of payment cards (with their check digit)", "replace them")
        self._iban = Collector("iban", "warning", "bank accounts (IBANs with their check digits)", "replace them")

    def add(self, conversation: Conversation) -> None:
        """Look at a row."""
        text = "\n".join(message.content or "" for message in conversation.messages)
        source = conversation.source
        if found := _SECRET.search(text):
            self._secret.add(source, f"{found[0][:8]}…")
        if found := next((match for match in _EMAIL.finditer(text) if not _reserved(match[0])), None):
            self._email.add(source, f"{found[0][:2]}…@{found[0].partition('@')[2]}")
        if found := _PHONE.search(text):
            self._phone.add(source, f"{found[0][:5]}…")
        if found := next((match for match in _CARD.finditer(text) if is_card(match[0])), None):
            self._card.add(source, f"{found[0][:4]}…")
        if found := next((match for match in _IBAN.finditer(text) if is_iban(match[0])), None):
            self._iban.add(source, f"{found[0][:4]}…")

    def findings(self) -> Iterable[DataFinding]:
        """Everything that was found."""
        for collector in (self._secret, self._email, self._phone, self._card, self._iban):
            yield from collector.findings()


def is_card(text: str) -> bool:
    """Whether the digits are a card's: a network's first digits, its length, and the check digit of ISO/IEC 7812 (Luhn)."""
    digits = [int(c) for c in text if c.isdigit()]
    number = "".join(map(str, digits))
    networks = (r"4(\d{12}|\d{15}|\d{18})", r"(5[1-5]|2[2-7])\d{14}", r"3[47]\d{13}", r"6(011|5\d\d)\d{12}", r"35\d{14}")
    if len(set(digits)) < 2 or not any(re.fullmatch(network, number) for network in networks):
        return False
    return sum(d if i % 2 == 0 else (2 * d - 9 if d > 4 else 2 * d) for i, d in enumerate(reversed(digits))) % 10 == 0


def is_iban(text: str) -> bool:
    """Whether the check digits of ISO 13616 are right (mod 97)."""
    text = text.replace(" ", "")
    return 15 <= len(text) <= 34 and int("".join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 == 1


def _reserved(address: str) -> bool:
    labels = address.partition("@")[2].lower().split(".")
    return labels[-1] in _RESERVED or (len(labels) > 1 and labels[-2] == "example")
