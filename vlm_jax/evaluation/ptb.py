"""Words of captions as the COCO metrics count them: the Penn Treebank tokens of Stanford's tokenizer, without Java.

The BLEU, ROUGE-L and CIDEr-D that papers report are counted on what `PTBTokenizer -preserveLines -lowerCase` of CoreNLP 3.4.1 makes of
captions, less a list of punctuation (pycocoevalcap 1.2 calls it). This module finds the same words:

- `don't` is `do n't`, `it's` is `it 's`, `cannot` is `can not`; `black-and-white` and `and/or` stay whole.
- The full stop stays with abbreviations (`st.`, `u.s.`), with single letters (`b.`) and with a word before a comma (`word.,`).
- Brackets stay, as `-lrb-` and `-rrb-`: that list has them in upper case only. So does `?!`, which is one token and not on it.
- What is neither a letter nor a digit nor a symbol of the lists below, such as an emoji, is left out.

All captions are one text there, a line each, and a rule may look into the next line: `the letter K.` keeps its full stop, but not where
the next caption begins with `A`. It is so here, too, so the order of captions matters to one in some ten thousand.

At each place the longest match of all rules counts, of equally long ones the first. The rules were made after what the tokenizer does
with captions, questions and answers, of which none is known that differs. Left out are names of files, smileys of more than three
signs, entities of HTML, its tags with attributes, and some of what it does with words that are run together (`Inc.w/o`). A departure:
a number with its fraction, `5 7/8`, is one token with a space in it there, of which BLEU and CIDEr make two words and ROUGE-L one;
here it is two words.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import regex

PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""What is left out."""

_ABBREVIATIONS = """
a.k.a adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bancorp bhd bldg blvd brig bros calif capt cf cie cmdr co col
colo comdr conn cont'd corp cos cpl ct dak dec dept det dr drs ed.d elec ens esq est etc ext feb fla fri ft ga gen gov govs hon inc ind
insp intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar md messrs mich minn mlle mme mo mon mont mr mrs ms msgr mt natl neb
nev nov oct okla penn pfc ph ph.d plc pres prof profs pvt rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt supts
sys tel tenn thu thurs treas tue tues univ va vs vt wed wis wisc wm wyo
""".split()
"""Keep their full stop, in whatever case."""
_NAMES = "Ark Az Del Ill La Mass Mfg Miss Mtg Ore Pa Tex Wash mfg mtg".split()
"""Keep their full stop when they are written so."""
_BEFORE_NUMBERS = "art ca fig figs no nos op pp prop".split()
"""Keep their full stop before a number."""
_BEGINNINGS = """
a about according additionally after an as at but earlier he her here however if in it last many more mr. ms. now once one other our she
since so some such that the their then there these they this we what when while yet you
""".split()
"""With a capital they begin a sentence, so that the full stop of a single letter before them ends another. So does a tag."""
_DIVIDED = {"can": "not", "gon": "na", "wan": "na", "got": "ta", "lem": "me", "gim": "me", "'t": "is"}
"""Words of two words."""

_BLANK = r"[ \t\xa0\u2000-\u200a\u3000\n]"
_APOSTROPHE = "['\x92\u2019]"
_TICK = "['\x92\u2019`\x91\u2018\u201b]"
_ENDING = rf"{_APOSTROPHE}(?i:[msd]|re|ve|ll)"
_NOT = rf"(?i:n){_TICK}(?i:t)"
_QUOTES = r"(?:[`\u2018-\u201f\x82\x84\x91-\x94\u2039\u203a\xab\xbb]{1,2}|['\x92\u2019])"
_DASHES = r"\.\.\.+|\.[ \xa0](?:\.[ \xa0])+\.|[\x85\u2026]|-{1,4}|[\x96\x97\u2013-\u2015]|&(?:MD|mdash|ndash);"
"""Dots and dashes, all of which are left out; five hyphens and more are a token."""
_LETTERS = r"[\p{L}\u0300-\u036f\xad][\p{L}\p{Nd}\u0300-\u036f\xad]*"
_WORD = rf"{_LETTERS}(?:[.!?]{_LETTERS})*"
_DECIMAL = r"(?:\d*(?:[.:,]\d+)+|\d+)"
_SLASHED = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_ELIDED = rf"(?:[dDoOlL]{_TICK}[\p{{L}}\p{{Nd}}])?"
_JOINED = rf"{_ELIDED}[\p{{L}}\p{{Nd}}]+(?:[-_\u058a\u2010\u2011]{_ELIDED}[\p{{L}}\p{{Nd}}]+)*"
_HYPHENATED = r"[A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9\xad]+))+"
_INITIALS = r"[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+"
_TAG = r"</?[A-Za-z][A-Za-z0-9_:.-]* ?/?>"
_REST = r"[^\s\"<>(){}|]+[^\s\"<>(){}|.,!?-]"
_PATH = rf"(?:/{_REST})?"


@dataclasses.dataclass(frozen=True)
class _Rule:
    """How a token may look."""

    token: str
    then: str = ""
    """What has to follow; it counts towards the length of the match."""


_RULES = (
    *(_Rule(f"(?i:{first})", f"(?i:{second})") for first, second in _DIVIDED.items()),
    _Rule("(?i:'t)", "(?i:was)"),
    _Rule(_TAG),
    _Rule("&amp;"),
    _Rule(_WORD, _ENDING),
    _Rule("[A-Za-z\xad]*[A-MO-Za-mo-z]\xad*", _NOT),
    _Rule(_WORD),
    # words with an apostrophe
    _Rule(rf"{_APOSTROPHE}(?i:n{_APOSTROPHE}?|em|till?|cause|[2-9]0s)|(?i:[ldj]|dunkin|somethin|ol){_APOSTROPHE}"),
    _Rule(rf"[A-HJ-XZn]{_TICK}\p{{L}}{{2,}}|\p{{L}}+[aeiouyAEIOUY]{_TICK}[aeiouA-Z]\p{{L}}*|O{_TICK}o|(?i:c{_APOSTROPHE}est|cap{_APOSTROPHE}n)"),
    _Rule(r"(?i:cont'd\.?|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l)"),
    _Rule(f"[yY]{_APOSTROPHE}", r"\p{L}"),
    # addresses
    _Rule(rf"(?i:https?|ftp)://{_REST}"),
    _Rule(rf"(?i:www)\.(?:[^\s.,!?\"<>(){{}}|]+\.)+[A-Za-z]{{2,4}}{_PATH}"),
    _Rule(rf"(?:\p{{Ll}}+\.)+(?i:com|net|org|edu){_PATH}"),
    _Rule(r"[A-Za-z0-9][^\s\"<>(){}|@]*@[^\s\"<>(){}|@.]+(?:\.[^\s\"<>(){}|@.]+)*"),
    _Rule(r"@[a-zA-Z_][a-zA-Z_0-9]*|#\p{L}+"),
    _Rule(f"{_ENDING}|{_NOT}", "[^A-Za-z]"),
    # numbers
    _Rule(r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}"),
    _Rule(f"[-+]?{_DECIMAL}"),
    _Rule(r"[\u207a\u207b\u208a\u208b]?(?:[\u2070\xb9\xb2\xb3\u2074-\u2079]+|[\u2080-\u2089]+)"),
    _Rule(r"(?:\d{1,4}[- \xa0])?\d{1,4}(?:\\?/|\u2044)\d{1,4}|[\xbc-\xbe\u2153-\u215e]"),
    _Rule("(?i:pro|anti)-"),
    _Rule(rf"{_SLASHED}(?:\\?/{_SLASHED}){{1,2}}"),
    _Rule(r"[A-Z]*\$|#|[\xa2-\xa5\x80\u20a0\u20a4\u20ac]"),
    # full stops
    _Rule("[A-Za-z]", rf"\.{_BLANK}+(?:(?=[A-Z])(?i:\L<beginnings>)|{_TAG}){_BLANK}"),
    _Rule(r"(?i:\L<before_numbers>)\.", rf"{_BLANK}?\d"),
    _Rule(r"(?i:\L<abbreviations>|[a-z](?:\.[a-z])*)\.|\L<names>\."),
    _Rule(rf"{_APOSTROPHE}\d\d", _BLANK),
    *(_Rule(rf"{kind}\.", "[,;:\u3001]") for kind in (_WORD, _HYPHENATED, _JOINED, _INITIALS)),
    _Rule(r"\(\d{2,3}\)", r" ?\d{3,4}[ -]?\d{3}"),
    # marks
    _Rule("\"|&quot;|''"),
    _Rule(r"[<>]?[:;=][-o*']?[()DPpO\\{@|\[\]]", "[^A-Za-z0-9]"),
    _Rule(_DASHES),
    _Rule("-+"),
    _Rule(r"[()\[\]{}]|<<|>>|[<>]|@+|#+|_+|\*+|(?:\\\*){1,3}|[,;:\u3001]|[?!]+|[.\xa1\xbf]|=|/"),
    _Rule(_HYPHENATED, r"[^\p{L}\p{Nd}+]"),
    _Rule(_JOINED),
    _Rule(_INITIALS),
    _Rule("'", rf"\p{{L}}(?!{_BLANK})[^\n]"),
    _Rule(f"{_ENDING}|{_NOT}"),
    _Rule(_QUOTES),
    _Rule(r"[%&+\\^|~]|[\xa6-\xb9\xd7\xf7\u2016-\u2117\u211e-\u2bff\u3000-\u303f\u30fb\uff01-\uff65&&[\p{S}\p{P}\p{No}]]"),
)
_LISTS: dict[str, Any] = {"abbreviations": _ABBREVIATIONS, "names": _NAMES, "before_numbers": _BEFORE_NUMBERS, "beginnings": _BEGINNINGS}
_PATTERNS = [regex.compile(f"(?V1)({rule.token})(?={rule.then}())", ignore_unused=True, **_LISTS) for rule in _RULES]
_AHEAD = 20
"""Characters of the next line that are enough for every rule."""

# most words need no rule: they are letters that nothing joins with what follows
_PLAIN = regex.compile("[A-Za-z]+(?: [A-Za-z]+)*(?=[ \n]|, |\\.\n)")
_DIVIDED_WORDS = frozenset(first + second for first, second in _DIVIDED.items())
_STOPPED = frozenset([*_ABBREVIATIONS, *map(str.lower, _NAMES), *_BEFORE_NUMBERS, *"abcdefghijklmnopqrstuvwxyz"])
_SKIPPED = regex.compile(r" +|,(?= )|\.(?=\n)")

_WRITTEN = {
    **{"[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "&quot;": "''", '"': "''"},
    **{"\xbc": "1/4", "\xbd": "1/2", "\xbe": "3/4", "\u2153": "1/3", "\u2154": "2/3"},
    **{"\xa2": "cents", "\xa3": "#", "\xa4": "$", "\x80": "$", "\u20a0": "$", "\u20ac": "$"},
}
_PARENTHESES = str.maketrans({"(": "-lrb-", ")": "-rrb-", "\xad": ""})
_QUOTED = regex.compile(f"{_QUOTES}|{_ENDING}|{_NOT}")
_STRAIGHT = str.maketrans(
    {
        **dict.fromkeys("\x91\u2018\u201b\u2039", "`"),
        **dict.fromkeys("\x92\u2019\u203a", "'"),
        **dict.fromkeys("\x93\u201c\xab", "``"),
        **dict.fromkeys("\x94\u201d\xbb", "''"),
    }
)
_DROPPED = regex.compile(_DASHES)
_ASTRAL = regex.compile("[\U00010000-\U0010ffff]")


def tokenize(captions: Iterable[str]) -> list[list[str]]:
    """The words of each caption, in lower case and without punctuation; none for one that has no words."""
    lines = [" ".join(_ASTRAL.sub(" ", caption).splitlines()) for caption in captions]
    text = "\n".join([*lines, ""])
    words, start = [], 0
    for line in lines:
        words.append([word for token in _tokens(text, start, start + len(line)) for word in token.split()])
        start += len(line) + 1
    return words


def _tokens(text: str, place: int, end: int) -> Iterator[str]:
    """Those of the line that ends at `end`."""
    while place < end:
        if plain := _PLAIN.match(text, place, end + 2):
            words = plain[0].lower().split()
            if _DIVIDED_WORDS.isdisjoint(words) and not (text[plain.end()] == "." and words[-1] in _STOPPED):
                yield from words
                place = plain.end()
                continue
        if skipped := _SKIPPED.match(text, place, end + 2):
            place = skipped.end()
        elif token := _longest(text, place, end + _AHEAD):
            place += len(token)
            word = _written(token)
            if word not in PUNCTUATION and not _DROPPED.fullmatch(word):
                yield word
        else:
            place += 1


def _longest(text: str, place: int, end: int) -> str:
    found = [match for pattern in _PATTERNS if (match := pattern.match(text, place, end))]
    return max(found, key=lambda match: match.end(2))[1] if found else ""


def _written(token: str) -> str:
    if token in _WRITTEN:
        return _WRITTEN[token]
    token = token.translate(_STRAIGHT) if _QUOTED.fullmatch(token) else token
    return token.translate(_PARENTHESES).replace("&amp;", "&").lower()
