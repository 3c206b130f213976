"""Which language a text is in, roughly: its script, and in Latin script the function words of common languages.

Told only where it is clear; short texts, names and code are in no language.
"""

from __future__ import annotations

import re
from collections import Counter

_SCRIPTS = {
    "Cyrillic": "\u0400-\u052f",
    "Greek": "\u0370-\u03ff",
    "Hebrew": "\u0590-\u05ff",
    "Arabic": "\u0600-\u06ff\u0750-\u077f",
    "Devanagari": "\u0900-\u097f",
    "Bengali": "\u0980-\u09ff",
    "Tamil": "\u0b80-\u0bff",
    "Thai": "\u0e00-\u0e7f",
    "Hangul": "\uac00-\ud7af\u1100-\u11ff",
    "Japanese": "\u3040-\u30ff",
    "Han": "\u4e00-\u9fff\u3400-\u4dbf",
}
_OTHER = {name: re.compile(f"[{characters}]") for name, characters in _SCRIPTS.items()}
_LATIN = re.compile("[A-Za-z\u00c0-\u024f]")
_WORD = re.compile(r"[^\W\d_]+")
_CHARACTERS = 2000  # of a text that are looked at
_WORDS = {
    "English": "the of and to is in that it you for with are this be was what which not have from your how an",
    "German": "der die das und ist nicht ein eine zu den mit von für auf sich dem des auch wie wird bei aus sind",
    "French": "le la les des est une et pour dans que qui sur avec pas vous par plus au du ce cette sont être",
    "Spanish": "el la los las una es que por para con del se lo como más pero sus está son y en al qué",
    "Portuguese": "o os as uma é que para com não do da dos das em no na por mais se como são ao pelo",
    "Italian": "il lo la gli una è che per con non del della di nel sono più come anche si alla dei le questo",
    "Dutch": "de het een en van is dat niet op te zijn voor met die aan er ook als maar bij om naar wordt",
    "Swedish": "och att det som en är för på med inte av den till har jag ett om var men från kan",
    "Danish": "og at det som en er for på med ikke af den til har jeg et om var men fra kan der",
    "Polish": "i w na z że nie to się do jest jak po co ale o od za czy przez tak przy dla są",
    "Romanian": "și în de la cu nu este o că pe un mai din sunt care pentru ce ca fi au sau prin",
    "Turkish": "ve bir bu için ile da de çok olarak daha olan gibi kadar sonra ne ama en değil her var",
    "Hungarian": "a az és hogy nem is egy van meg ez csak de volt mint már el ha vagy még ki fel",
    "Finnish": "ja on ei että se oli hän mutta ovat kun niin myös tai jos joka sen kuin ole voi mitä",
    "Czech": "a je se na v že to s z o do ale jako za by pro tak po co jsou nebo není které",
    "Indonesian": "yang dan di untuk dengan ini itu dari pada adalah tidak akan dalam ke oleh atau juga saya ada bisa",
    "Irish": "agus an na ar le go is a i do bhí níl tá sé sí mé leis ag ón faoi",
}
_LANGUAGES: dict[str, list[str]] = {}
for _language, _words in _WORDS.items():
    for _one in _words.split():
        _LANGUAGES.setdefault(_one, []).append(_language)


def language_of(text: str) -> str:
    """ "English", "Cyrillic", ...; empty where it is not clear.

    Latin script: at least four function words of one language, a fifth of the words, and twice as many as of any other. Other scripts:
    more than half of the letters.
    """
    text = text[:_CHARACTERS]
    if not text.isascii():
        counts = {name: len(pattern.findall(text)) for name, pattern in _OTHER.items()}
        if counts["Japanese"]:
            counts["Japanese"] += counts.pop("Han")
        name, count = max(counts.items(), key=lambda pair: pair[1])
        if count > len(_LATIN.findall(text)):
            return name if count >= 4 else ""
    words = _WORD.findall(text.lower())
    hits = Counter(language for word in words for language in _LANGUAGES.get(word, ()))
    ranked = [*hits.most_common(2), ("", 0), ("", 0)]
    (language, most), (_, second) = ranked[:2]
    return language if most >= max(4, len(words) / 5) and most >= 2 * second else ""
