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
    "st ste ave blvd rd sq ct rt bldg mt ft ariz ala calif colo conn dak fla ga ind kan kans ky md mich minn mo mont neb "
    "nev okla penn tenn va vt wis wisc wyo "
    # time
    "jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri "
    # trade, learning and the rest
    "co cos corp inc ltd bros assn assoc asst bancorp cie dept elec intl invt mfg natl plc pty univ adj adv est tel ext "
    "etc vs cf al ph\\.d ph ed\\.d"
)
# Lower-case, these are English words that end a sentence.
CAPITALISED_ABBREVIATIONS = "Ark Del Ill La Mass Miss Ore Pa Tex Wash"
# Abbreviations only before a number: "no. 5", but "oh no .".
NUMBERED_ABBREVIATIONS = "art ca fig figs no nos op pp prop"
# "Plan A. The dog" ends a sentence after A; "J. Smith" and "A. clear vase" do not.
SENTENCE_OPENERS = (
    "A About After An As At But Earlier He Her Here However If In It Last Many More Now Once One Other Our She Since So "
    "Some Such That The Their Then There These They This We What When While Yet You"
)
COMPOUNDS = {
    **{"cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na"},
    **{"gimme": "gim me", "lemme": "lem me"},
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
APOSTROPHE = "(?:['\u2019\x92]|&apos;)"
BLANK = "[ \u00a0]"
SYMBOL = (
    r"[!-/:-@\[-`{-~\x80\x91-\x94\x96\x97\u00a1-\u00a9\u00ab\u00ac\u00ae-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u00d7\u00f7"
    r"\u2013-\u2023\u2026\u2030-\u2042\u2044\u2070-\u208e\u20a0\u20a4\u20ac\u2100-\u214f\u2153-\u215e\u2190-\u2bff"
    r"\u3001\u3002\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0-\uffe6]"
)
# Words and their parts. Possessive quantifiers (++) wherever a long caption could make the matcher go back.
WORD = rf"{LETTER}{ALNUM}*+"
THING = rf"{ALNUM}++(?:[-_\u2010\u2011]{ALNUM}++)*+"
SLASHABLE = "[A-Za-z0-9]++(?:-[A-Za-z]++)*+"
DOMAIN = r"(?:com|edu|gov|mil|net|org)(?![A-Za-z])"
ADDRESS = r"[^\s<>\"()]*[^\s<>\"().,;:!?]"
# Contexts.
APART = f"(?!{ALNUM})"
SENTENCE_END = rf"\.(?:\s*+\Z|\s++(?:{either(SENTENCE_OPENERS)}|{either(SENTENCE_OPENERS.upper())}){APART})"


def unbroken(token: str) -> str:
    """A token in which a blank is U+00A0, as the program writes "1 1/2" and tags."""
    return token.replace(" ", "\u00a0")


def straight(token: str) -> str:
    """A clitic with a straight apostrophe."""
    return re.sub(APOSTROPHE, "'", token)


class Rule(NamedTuple):
    """A kind of token: its pattern, what must stand behind it, and how it is spelt."""

    noun: str
    token: str
    context: str = ""
    spell: Callable[[str], str] = unbroken


RULES = (
    Rule("word", rf"{LETTER}(?:{ALNUM}|[\u0300-\u036f])*+"),
    Rule("thing", THING),
    Rule("dotted word", rf"{WORD}(?:[.!?]{WORD})++"),
    Rule("slashed words", rf"{SLASHABLE}(?:/{SLASHABLE}){{1,2}}+"),
    Rule("joined capitals", "[A-Z]++(?:(?:[&+]|&amp;)[A-Z]++)++", spell=lambda token: token.replace("&amp;", "&")),
    # Contractions. With its context, the "do" of "don't" reaches further than the word "don".
    Rule("negated verb", f"{LETTER}+?", f"[nN](?:{APOSTROPHE}|[`\u2018])[tT]"),
    Rule("negation", f"[nN](?:{APOSTROPHE}|[`\u2018])[tT]", APART, straight),
    Rule("clitic", f"{APOSTROPHE}(?i:s|m|d|ll|re|ve)", APART, straight),
    Rule("clipped it", "'[tT]", "(?i:is|was)"),
    Rule("clipped word", f"{APOSTROPHE}(?i:em|till?|cause|n{APOSTROPHE}|n{APART})"),
    Rule("clipped you", f"[dDjJyY]{APOSTROPHE}", LETTER),
    Rule("prefixed name", f"(?:{ALNUM}++-)*+(?:[A-HJ-XZ]|[dlno]){APOSTROPHE}[A-Za-z]{{2,}}+(?:-{ALNUM}++)*+"),
    Rule("name with a stop", f"[A-Za-z]+[aeiouAEIOU]{APOSTROPHE}[aeiouAEIOU][A-Za-z]*+"),
    Rule("elided word", f"(?i:[eo]'er|ne{APOSTROPHE}er|ma{APOSTROPHE}ams?|cap'n|c'mon|ev'ry|li'l|nat'l|s'mores|ol')"),
    Rule("decade", rf"{APOSTROPHE}\d\d[sS]?+", r"(?=\s|\Z)"),
    # Numbers.
    Rule("number", r"[-+]?+(?:\d*+(?:[.,:]\d++)++|\d++)"),
    Rule("date", r"\d{1,2}/\d{1,2}/\d{2,4}|\d{1,2}-\d{1,2}-\d{2,4}"),
    Rule("fraction", rf"(?:\d{{1,4}}(?:-|{BLANK}))?+\d{{1,4}}[/\u2044]\d{{1,4}}"),
    Rule(
        "telephone number",
        rf"(?:\(\d{{2,3}}\){BLANK}?|\+{{,2}}(?:\d{{2,4}}[- \u00a0])?\d{{2,4}}[- \u00a0])\d{{3,4}}[- \u00a0]?\d{{3,5}}",
        spell=lambda token: token.translate(MARKS),
    ),
    Rule("currency", r"[A-Z]{1,3}\$"),
    # Words with a period.
    Rule("abbreviation", rf"(?:(?i:{either(ABBREVIATIONS)})|{either(CAPITALISED_ABBREVIATIONS)})\."),
    Rule("numbered abbreviation", rf"(?i:{either(NUMBERED_ABBREVIATIONS)})\.", rf"[\s]?\d"),
    Rule("last letter", "[A-Za-z]", SENTENCE_END),
    Rule("initial", r"[A-Za-z]\."),
    Rule("acronym", r"[A-Za-z](?:\.[A-Za-z])++\."),
    Rule("period before a comma", rf"{THING}\.", "[,;:]"),
    # What people type.
    Rule("web address", rf"https?://{ADDRESS}|(?:[A-Za-z0-9]++[.-])+?{DOMAIN}(?:/{ADDRESS})?"),
    Rule("mail address", r"[A-Za-z0-9][\w.-]{0,63}@[\w.-]{0,63}\w"),
    Rule("mention", r"@[A-Za-z_]\w*+"),
    Rule("hashtag", rf"\#{LETTER}++"),
    Rule("tag", "<(?:[/?!]?[A-Za-z]|!--)[^<>\t]*+>"),
    Rule("entity", either(" ".join(ENTITIES)), spell=lambda token: ENTITIES[token]),
    Rule("smiley", f"[:;=][-']?[()DPp]{APART}", spell=lambda token: token.translate(MARKS)),
    Rule("language", rf"[A-Za-z](?:\#|\+\+){APART}"),
    # Marks.
    Rule("ellipsis", rf"\.{{3,5}}|\.(?:{BLANK}\.){{2,4}}", spell=lambda token: "..."),
    Rule("exclamation", "[!?]++"),
    Rule("dash", "-{2,}+", spell=lambda token: "--" if len(token) < 5 else token),
    Rule("run of marks", r"\*++|_++|\#++|@++|<<|>>|''|``"),
    Rule("quotation marks", "[\u2018-\u201e\u2039\u203a\u00ab\u00bb\x91-\x94]{1,2}", spell=lambda token: token.translate(MARKS)),
    Rule("symbol", SYMBOL, spell=lambda token: token.translate(MARKS)),
)
GAP = re.compile(r"\s*+")
LINE_BREAK = re.compile("[\n\v\f\r\x85\u2028\u2029]")
COMPILED = [(re.compile(f"({rule.token}){rule.context}"), rule.spell) for rule in RULES]


# No rule looks across a blank at these characters, so such a caption is its blank-separated words one by one.
PLAIN = re.compile(r"\s*+(?:[A-Za-z,\"'-]{1,40}+(?:\s++|(?=[.!?])|\Z))*+[.!?]?+[\"']?+\s*+")


def ptb_tokenize(captions: list[str]) -> list[str]:
    """Each caption's tokens, lower-cased and without punctuation, joined by single blanks.

    The same strings as coco-caption's `PTBTokenizer`, with two differences on purpose: a line break inside a caption is
    a blank (there it shifts every later caption), and no caption looks into the next.
    """
    if isinstance(captions, str):
        raise TypeError("captions is one string; pass a list of captions, [caption] for a single one")
    rows = []
    for row, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise TypeError(f"caption {row} is {caption!r}; every caption must be a string, an empty one if there is none")
        rows.append(_plain(caption) if PLAIN.fullmatch(caption) else _scanned(caption))
    return rows


def _plain(caption: str) -> str:
    """The tokens of a caption that `PLAIN` matches, from the memory of its words."""
    return "".join(map(_word, caption.split()))[1:]


@lru_cache(maxsize=1 << 16)
def _word(word: str) -> str:
    """The tokens of one word, each with a blank before it; nothing for a punctuation mark."""
    tokens = _scanned(word)
    return tokens and " " + tokens


def _scanned(caption: str) -> str:
    """The tokens of any caption."""
    return " ".join(token for token in treebank_tokens(caption) if token not in PUNCTUATION)


def treebank_tokens(caption: str) -> list[str]:
    """Every token of a caption, punctuation kept."""
    text = LINE_BREAK.sub(" ", caption).replace("\u00ad", "")
    tokens = []
    place = 0
    while gap := GAP.match(text, place):
        place = gap.end()
        if place == len(text):
            break
        reach, end, spell = place, place + 1, None
        for pattern, spelling in COMPILED:
            if (match := pattern.match(text, place)) and match.end() > reach:
                reach, end, spell = match.end(), match.end(1), spelling
        if spell is not None:
            token = spell(text[place:end].lower())
            tokens.append(COMPOUNDS.get(token, token))
        place = end
    return tokens
