"""Which language a prompt is in: scripts, then function words. Small, offline, says 'other' when unsure."""

from __future__ import annotations

import re
from collections import Counter

OTHER, CODE = "other", "code"
MAX_CHARACTERS = 600  # of a prompt that are looked at
_WORD = re.compile(r"[^\W\d_]+(?:'(?=[^\W\d_]))?")

_FUNCTION_WORDS = {
    "en": "the of and to in is that for it with as was on be are this by at from have not you your i my what how can "
    "please write which will would should there their has an or if we do does about when where who why me a its some them "
    "they she he her his was were been out up no but so than then only into over after once like may more all one every",
    "fr": "le la les des de du et un une est en que qui dans pour pas sur au aux avec ce cette ces il elle nous vous je tu "
    "mon ton son ma ta sa mes tes ses être sont ne plus par ou où comment quel quelle fait peut d' l' j' qu' n' s' c' m' t'",
    "de": "der die das und ist nicht ein eine zu den dem des mit auf für von im sich auch es an als wie ich sie wir ihr du "
    "bei nach aus wird werden sind oder kann mir mein bitte was wer warum über",
    "es": "el la los las de que y en un una es por con para del al se no su lo como más pero sus le ya o este sí porque esta "
    "entre cuando muy sin sobre también me hasta hay donde quien qué cómo cuál puedo mi tu",
    "it": "il lo la i gli le di che e un una è per con non del della dei nel alla da si come più ma sono su anche al questo "
    "quando dove chi perché cosa mi ti ci vi ho hai ha puoi mio tuo l' d' un' dell' all' nell'",
    "pt": "o a os as de que e em um uma é por com para do da dos das no na não se ao mais como mas foi ele ela eu você meu "
    "seu sua isso este esta quando onde quem qual são ou também já até pelo pela",
    "nl": "de het een en van is dat in te op zijn met voor niet aan er om ook als bij maar of uit nog naar door wat hoe ik je "
    "jij we wij hij zij dit die deze kan mijn jouw waarom waar wordt worden",
}
_SETS = {code: frozenset(words.split()) for code, words in _FUNCTION_WORDS.items()}
_CODES = {
    word: tuple(c for c, known in _SETS.items() if word in known) for word in set().union(*_SETS.values())
}
_BEYOND_LATIN = re.compile(r"[\u0370-\uffff]")
_SCRIPTS = (
    ("ja", re.compile(r"[\u3040-\u30ff]")),
    ("ko", re.compile(r"[\uac00-\ud7af\u1100-\u11ff]")),
    ("zh", re.compile(r"[\u4e00-\u9fff]")),
    ("ru", re.compile(r"[\u0400-\u04ff]")),
    ("ar", re.compile(r"[\u0600-\u06ff]")),
    ("he", re.compile(r"[\u0590-\u05ff]")),
    ("el", re.compile(r"[\u0370-\u03ff]")),
    ("hi", re.compile(r"[\u0900-\u097f]")),
    ("th", re.compile(r"[\u0e00-\u0e7f]")),
)
_CODE = re.compile(
    r"[{};]\s*$|^\s*(?:def |class |import |from \w+ import|#include|return\b|function\b|public |private |const |let |var |"
    r"SELECT |<\?|</?\w+>)|=>|==|!=|\(\)|::|->",
    re.M,
)


def detect_language(text: str) -> str:
    """ISO 639-1 code of the text's main language, 'code' for program text, 'other' where it cannot be told.

    Cyrillic is called ru, Arabic script ar, Devanagari hi: a script, not a proof of the language.
    """
    text = text[:MAX_CHARACTERS]
    if _BEYOND_LATIN.search(text) is not None:
        letters = max(sum(map(str.isalpha, text)), 1)
        for code, script in _SCRIPTS:
            found = len(script.findall(text))
            # Japanese mixes in Chinese characters: a few kana decide
            if found >= (0.1 if code == "ja" else 0.3) * letters:
                return code
    if len(_CODE.findall(text)) >= max(3, 0.4 * (text.count("\n") + 1)):
        return CODE
    words = _WORD.findall(text.lower().replace("’", "'"))
    scores = Counter([code for word in words if word in _CODES for code in _CODES[word]])
    if not scores:
        return OTHER
    (best, hits), (_, second) = (*scores.most_common(2), (OTHER, 0))[:2]
    total = len(words)
    if hits == second or (total >= 8 and hits < 0.12 * total):
        return OTHER
    return best
