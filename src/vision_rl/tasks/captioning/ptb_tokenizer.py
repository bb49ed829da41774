"""The Penn Treebank tokens that caption metrics count, without Java.

coco-caption sends every caption through the `PTBTokenizer` of Stanford CoreNLP 3.4.1 (lower-cased, one caption a line)
and drops the punctuation before BLEU, ROUGE-L and CIDEr see it. The rules here are our own, written from the conventions
of the Penn Treebank and from watching what that program answers; nothing of its grammar is copied.

The method is that of a lexer. At each place every rule is tried and the one that reaches furthest wins, the first of
equals; its token is what it matched without the context behind. A character no rule knows, such as an emoji or a
control character, separates tokens and is dropped, as that program does.

Where a caption ends, a sentence ends: "Lane S." gives "lane s", as it does there when the next line starts a sentence.
Left out is what captions hardly hold: rare emoticons, named entities such as `&eacute;`, and which way a straight
quotation mark faces, since both ways are dropped.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple


# What coco-caption drops. Lower-casing turns -LRB- into -lrb-, so the brackets of a caption stay and are counted.
PUNCTUATION = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", *".?!,:;-", "--", "..."])

# Words that keep their period.
ABBREVIATIONS = (
    # people and posts
    "mr mrs ms messrs mme mlle dr drs prof profs rev msgr hon pres gov govs sen sens rep reps atty insp supt det gen col "
    "lt lieut maj capt cmdr comdr cpl sgt pvt pfc spc adm brig ens treas jr sr esq alex jos wm "
    # places
    "st ste ave blvd rd sq ct rt bldg mt ft az ariz ala calif colo conn dak fla ga ind kan kans ky md mich minn mo mont "
    "neb nev okla penn tenn va vt wis wisc wyo "
    # time
    "jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri "
    # trade, learning and the rest
    "co cos corp inc ltd bros assn assoc asst bancorp cie dept elec intl invt mfg natl plc pty univ adj adv est tel ext "
    "etc vs cf al ph\\.d ph ed\\.d"
)
# Lower-case, these are English words that end a sentence.
CAPITALISED_ABBREVIATIONS = "Ark Del Ill La Mass Miss Ore Pa Tex Wash ARK DEL ILL LA MASS MISS ORE PA TEX WASH"
# Abbreviations only before a number: "no. 5", but "oh no .".
NUMBERED_ABBREVIATIONS = "art ca fig figs no nos op pp prop"
# "Plan A. The dog" ends a sentence after A; "J. Smith" and "A. clear vase" do not.
SENTENCE_OPENERS = (
    "A About After An As At But Earlier He Her Here However If In It Last Many More Now Once One Other Our She Since So "
    "Some Such That The Their Then There These They This We What When While Yet You"
)
COMPOUNDS = {
    **{"cannot": "can not", "gonna": "gon na", "gotta": "got ta"},
    **{"wanna": "wan na", "gimme": "gim me", "lemme": "lem me"},
}
ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'", "&mdash;": "--", "&ndash;": "--"}
# How the treebank spells a mark. \x80-\x97 are the Windows code page read as Latin-1, which the program mends too.
MARKS = str.maketrans(
    {
        **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", " ": "\u00a0"},
        **dict.fromkeys("\u201c\u00ab\x93", "``"),
        **dict.fromkeys('"\u201d\u00bb\x94', "''"),
        **dict.fromkeys("\u2018\u201b\u2039\x91", "`"),
        **dict.fromkeys("\u2019\u203a\x92", "'"),
        **dict.fromkeys("\u2013\u2014\u2015\x96\x97", "--"),
        **dict.fromkeys("\u20ac\u20a0\u00a4\x80", "$"),
        **{"\u00a3": "#", "\u00a2": "cents", "\u2026": "..."},
        **{"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"},
    }
)


def either(words: str) -> str:
    """A pattern of the blank-separated words."""
    return f"(?:{'|'.join(words.split())})"


# Characters. The program reads what lies beyond the basic plane as two halves, and knows neither.
NO_LETTER = (
    "\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u2089\u2150-\u218f\u2460-\u24ff\u2776-\u2793\u3007\U00010000-\U0010ffff"
)
LETTER = rf"[^\W\d_{NO_LETTER}]"
ALNUM = rf"[^\W_{NO_LETTER}]"
# The signs that Hebrew, Arabic, Hindi, Thai and decomposed Latin letters carry.
ACCENT = f"[{''.join(chr(c) for c in range(0x2C2, 0xF00) if unicodedata.category(chr(c)) in ('Mn', 'Mc', 'Sk'))}]"
APOSTROPHE = "(?:['\u2019\x92]|&apos;)"
STOP = "(?:['`\u2018\u2019\x91\x92]|&apos;)"  # any mark that is typed for an apostrophe within a word
BLANK = "[ \u00a0]"
SYMBOL = (
    r"[!-/:-@\[-`{-~\x80\x91-\x94\x96\x97\u00a1-\u00a9\u00ab\u00ac\u00ae-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u00d7\u00f7"
    r"\u2013-\u2023\u2026\u2030-\u2042\u2044\u2070-\u208e\u20a0\u20a4\u20ac\u2100-\u214f\u2153-\u215e\u2190-\u2bff"
    r"\u3001\u3002\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0-\uffe6]"
)
CLITIC = f"{APOSTROPHE}(?i:s|m|d|ll|re|ve)"
# Words and their parts. Possessive quantifiers (++) wherever a long caption could make the matcher go back.
LETTERS = rf"{LETTER}{ALNUM}*+"
DOTTED = rf"{LETTERS}(?:[.!?]{LETTERS})++"
LIST = rf"{ALNUM}(?:{ALNUM}|[.,]){{,99}}+(?:-{ALNUM}++)++"  # "1,000-foot", "red,blue-green"
THING = rf"{ALNUM}++(?:[-_\u2010\u2011]{ALNUM}++)*+"
SLASHABLE = "[A-Za-z0-9]++(?:-[A-Za-z]++)*+"
DOMAIN = r"(?:com|edu|gov|mil|net|org)(?![A-Za-z])"
ADDRESS = r"[^\s<>\"()]*[^\s<>\"().,!?]"
# Contexts.
APART = f"(?!{ALNUM})"
SENTENCE_END = rf"\.(?:\s*+\Z|\s++(?:{either(SENTENCE_OPENERS)}|{either(SENTENCE_OPENERS.upper())})(?:\s|\Z))"


def unbroken(token: str) -> str:
    """A token in which a blank is U+00A0, as the program writes "1 1/2" and tags."""
    return token.replace(" ", "\u00a0")


def straight(token: str) -> str:
    """A clitic with a straight apostrophe."""
    return re.sub(APOSTROPHE, "'", token).replace("\u2018", "`")


class Rule(NamedTuple):
    """A kind of token: its pattern, what must stand behind it, and how it is spelt.

    It may begin with a letter or accent ("a"), a digit ("0") or any other character (".").
    """

    noun: str
    begins: str
    token: str
    context: str = ""
    spell: Callable[[str], str] = unbroken


RULES = (
    # Contractions. With its context, the "do" of "don't" reaches further than the word "don".
    Rule("compound", "a", f"(?i:{either(' '.join(COMPOUNDS))})", APART, lambda token: COMPOUNDS.get(token, token)),
    Rule("word before a clitic", "a", f"{LETTER}{ALNUM}*", f"{CLITIC}(?![A-Za-z])"),
    Rule("word", "a", rf"(?:{LETTER}|{ACCENT})(?:{ALNUM}|{ACCENT})*+"),
    Rule("thing", "a0", THING),
    Rule("hyphenated list", "a0", LIST),
    Rule("dotted word", "a", DOTTED),
    Rule("slashed words", "a0", rf"{SLASHABLE}(?:/{SLASHABLE}){{1,2}}+"),
    Rule(
        "joined capitals", "a", "[A-Z]++(?:(?:[&+]|&amp;)[A-Z]++)++", spell=lambda token: token.replace("&amp;", "&")
    ),
    Rule("negated verb", "a", f"{LETTER}*?(?![nN]){LETTER}", f"[nN]{STOP}[tT]"),
    Rule("negation", "a", f"[nN]{STOP}[tT]", APART, straight),
    Rule("clitic", ".", CLITIC, "(?![A-Za-z])", straight),
    Rule("clipped it", ".", "'[tT]", "(?i:is|was)"),
    Rule("clipped word", ".", rf"{APOSTROPHE}(?i:em|till?|cause|n{APOSTROPHE}|n(?=\s|\Z))"),
    Rule("clipped you", "a", f"[jJyY]{APOSTROPHE}", f"(?![dmsDMS]){LETTER}"),
    Rule("clipped article", "a", f"[dDlL]{APOSTROPHE}"),
    Rule("prefixed name", "a0", f"(?:{ALNUM}++-)*+(?:[A-HJ-XZ]|[dlno]){STOP}[A-Za-z]{{2,}}+(?:-{ALNUM}++)*+"),
    Rule("name with a stop", "a", f"[A-Za-z]+[aeiouyAEIOUY]{STOP}[aeiouA-Z][A-Za-z]*+"),
    Rule(
        "elided word",
        "a",
        f"(?i:n?e{APOSTROPHE}er|o{APOSTROPHE}er|ma{APOSTROPHE}ams?|c{APOSTROPHE}mon|cap{APOSTROPHE}n|ol{APOSTROPHE})",
    ),
    Rule("elided word", "a", "(?i:c'est|ev'ry|li'l|nat'l|s'mores)"),
    Rule("decade", ".", rf"{APOSTROPHE}(?:[1-9]0[sS]|\d\d(?=\s|\Z))"),
    # Numbers.
    Rule("number", "0.", r"[-+]?+(?:\d*+(?:[.,:]\d++)++|\d++)"),
    Rule("date", "0", r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}"),
    Rule("fraction", "0", rf"(?:\d{{1,4}}(?:-|{BLANK}))?+\d{{1,4}}[/\u2044]\d{{1,4}}"),
    Rule(
        "telephone number",
        "0.",
        rf"(?:\(\d{{2,3}}\){BLANK}?|\+{{,2}}(?:\d{{2,4}}[- \u00a0])?\d{{2,4}}[- \u00a0])\d{{3,4}}[- \u00a0]?\d{{3,5}}",
        spell=lambda token: token.translate(MARKS),
    ),
    Rule("currency", "a", r"[A-Z]{1,3}\$"),
    # Words with a period.
    Rule("abbreviation", "a", rf"(?:(?i:{either(ABBREVIATIONS)})|{either(CAPITALISED_ABBREVIATIONS)})\."),
    Rule("numbered abbreviation", "a", rf"(?i:{either(NUMBERED_ABBREVIATIONS)})\.", r"\s?\d"),
    Rule("last letter", "a", "[A-Za-z]", SENTENCE_END),
    Rule("initial", "a", r"[A-Za-z]\."),
    Rule("acronym", "a0", rf"(?:{ALNUM}++-)*+[A-Za-z](?:\.[A-Za-z])++\."),
    Rule("period before a comma", "a0", rf"(?:{DOTTED}|{LIST}|{THING})\.", "[,;:]"),
    # What people type.
    Rule("web address", "a", rf"https?://{ADDRESS}|(?:[A-Za-z][A-Za-z0-9]*+\.)+?{DOMAIN}/{ADDRESS}"),
    Rule("mail address", "a0", r"[A-Za-z0-9][\w.-]{0,63}@[^\s\"<>()|.]{1,64}+(?:\.[^\s\"<>()|.]{1,64}+){0,9}+"),
    Rule("mention", ".", r"@[A-Za-z_]\w*+"),
    Rule("hashtag", ".", rf"\#{LETTER}++"),
    Rule("tag", ".", r"<(?:[/?!]?[A-Za-z]|!--)(?:[^\s<>]| )*+>"),
    Rule("entity", ".", f"(?i:{either(' '.join(ENTITIES))})", spell=lambda token: ENTITIES.get(token, token)),
    Rule("character reference", ".", r"&(?:\#\d++|[A-Za-z](?:acute|grave|uml|circ|tilde|cedil));"),
    Rule("smiley", ".", rf"[:;=][-']?[()DPp@|]{APART}|\^_\^|-_-", spell=lambda token: token.translate(MARKS)),
    Rule("language", "a", rf"(?i:[cf]\#|c\+\+){APART}"),
    # Marks.
    Rule("ellipsis", ".", rf"\.{{3,5}}|\.(?:{BLANK}\.){{2,4}}", spell=lambda token: "..."),
    Rule("exclamation", ".", "[!?]++"),
    Rule("dash", ".", "-{2,}+", spell=lambda token: "--" if len(token) < 5 else token),
    Rule("run of marks", ".", r"\*++|_++|\#++|@++|<<|>>|''|``"),
    Rule(
        "quotation marks",
        ".",
        "[`\u2018-\u201e\u2039\u203a\u00ab\u00bb\x91-\x94]{1,2}",
        spell=lambda token: token.translate(MARKS),
    ),
    Rule("symbol", "a.", SYMBOL, spell=lambda token: token.translate(MARKS)),
)
GAP = re.compile(r"(?:\s|&nbsp;)*+")
LINE_BREAK = re.compile("[\n\v\f\r\x85\u2028\u2029]")
LEXER = {
    kind: [(re.compile(f"({rule.token}){rule.context}"), rule.spell) for rule in RULES if kind in rule.begins]
    for kind in "a0."
}
LETTER_OR_DIGIT = re.compile(rf"({LETTER}|{ACCENT})|(\d)")
PLAIN_WORD = re.compile(r"[A-Za-z]++(?=\s|\Z)")  # no rule but that of compounds makes something else of it
LONGEST_WORD = 40  # that is remembered
WORD = re.compile(rf"[^\s<]{{1,{LONGEST_WORD}}}+(?=\s|\Z)")
# What the tokens of a word may depend on lies behind a blank only if it ends so: "1 1/2", "(555) 555-1234", "no. 5",
# "plan A. The", ". . .". A tag may go on behind a blank, too.
OPEN_END = re.compile(rf"(?:[\d)]|(?<![A-Za-z]{{2}})\.|(?i:{either(NUMBERED_ABBREVIATIONS)})\.)\Z")


def ptb_tokenize(captions: list[str]) -> list[str]:
    """The tokens of each caption, lower-cased and without punctuation, joined by single blanks.

    They are those of coco-caption's `PTBTokenizer` with two differences on purpose: a line break within a caption is a
    blank (there it shifts every later caption), and a caption's tokens depend on that caption alone (there the program
    looks into the next). As there, "1 1/2" is one token with U+00A0 in it.
    """
    if isinstance(captions, str):
        raise ValueError("captions is a single string; pass a list of captions, such as [caption]")
    rows = []
    for row, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise ValueError(
                f"captions[{row}] is {caption!r}, of type {type(caption).__name__}; pass a string for every caption, "
                'or the empty "" where there is none'
            )
        *words, last = caption.split() or [""]
        tokens = [*map(_remembered, words), _remembered(last, True)]
        known = [token for token in tokens if token is not None]
        rows.append(("".join(known) if len(known) == len(tokens) else _scan(caption))[1:])
    return rows


@lru_cache(maxsize=1 << 16)
def _remembered(word: str, is_last: bool = False) -> str | None:
    """The tokens of a word without blanks, each with a blank before it; `None` where they may depend on what follows."""
    if len(word) > LONGEST_WORD or (not is_last and ("<" in word or OPEN_END.search(word.replace("\u00ad", "")))):
        return None
    return _scan(word, from_memory=False)


def _scan(caption: str, from_memory: bool = True) -> str:
    """The tokens of a caption, each with a blank before it; words out of memory where they are there."""
    text = LINE_BREAK.sub(" ", caption).replace("\u00ad", "")  # a soft hyphen is no character of its word
    tokens = []
    place = _after_gap(text, 0)
    while place < len(text):
        if word := PLAIN_WORD.match(text, place):
            lower, end = word[0].lower(), word.end()
            tokens.append(" " + COMPOUNDS.get(lower, lower))
        elif from_memory and (word := WORD.match(text, place)) and (known := _remembered(word[0])) is not None:
            tokens.append(known)
            end = word.end()
        else:
            end, token = _longest_token(text, place)
            if token not in PUNCTUATION:
                tokens.append(" " + token)
        place = _after_gap(text, end)
    return "".join(tokens)


def _longest_token(text: str, place: int) -> tuple[int, str]:
    """The end and the spelling of the token whose rule reaches furthest, its context included; a period if no rule fits."""
    kind = LETTER_OR_DIGIT.match(text, place)
    reach, end, spell = place, place + 1, None
    for pattern, spelling in LEXER["." if kind is None else "a" if kind[1] else "0"]:
        if (match := pattern.match(text, place)) and match.end() > reach:
            reach, end, spell = match.end(), match.end(1), spelling
    return end, "." if spell is None else spell(text[place:end].lower())


def _after_gap(text: str, place: int) -> int:
    """The end of the blanks that begin at `place`."""
    match = GAP.match(text, place)
    return match.end() if match else place
