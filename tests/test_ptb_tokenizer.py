"""Caption tokens against coco-caption's own: recorded answers, a table by hand, and the Java program if it is there."""

# ruff: noqa: RUF001 - curly quotation marks and dashes are tested here

import importlib.util
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import golden

from vision_rl.tasks.captioning import CiderReward, DocumentFrequency, coco_captions, ngrams, ptb_tokenizer
from vision_rl.tasks.captioning.ptb_tokenizer import ptb_tokenize


DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# The answers of coco-caption's own program.
TABLE = {
    "A man riding a wave on top of a surfboard.": "a man riding a wave on top of a surfboard",
    "  Two dogs,  one ball ! ": "two dogs one ball",
    "": "",
    " ": "",
    "...": "",
    "A dog. A cat? A bird!": "a dog a cat a bird",
    "wow!! what?!": "wow !! what ?!",
    "stop.The end": "stop.the end",
    "wait...what . . . yes": "wait what yes",
    "don't Don't DON'T can't won't": "do n't do n't do n't ca n't wo n't",
    "don’t they’re": "do n't they 're",
    "I'm she'll we've you're he'd it's": "i 'm she 'll we 've you 're he 'd it 's",
    "shouldn't've y'all": "should n't 've y' all",
    "the dogs' ball, men's and James's": "the dogs ball men 's and james 's",
    "cannot gonna gotta wanna lemme gimme": "can not gon na got ta wan na lem me gim me",
    "'tis 'twas 'til 'em 'cause": "'t is 't was 'til 'em 'cause",
    "rock 'n' roll rock'n'roll": "rock 'n' roll rock 'n' roll",
    "o'clock O'Brien's D'Angelo": "o'clock o'brien 's d'angelo",
    "hors d'oeuvres at Ho'ohu and Pe'e": "hors d'oeuvres at ho'ohu and pe'e",
    "ma'am ol' cap'n s'mores": "ma'am ol' cap'n s'mores",
    "the '90s, the 1990s and the 80's": "the '90s the 1990s and the 80 's",
    "a black-and-white T-shirt, mid-air": "a black-and-white t-shirt mid-air",
    "well- known -ly a -- b half--eaten": "well known ly a b half eaten",
    "a—b c – d": "a b c d",
    "red,white-and-blue flag": "red,white-and-blue flag",
    "laptops,computer,keyboard": "laptops computer keyboard",
    "bird's-eye view": "bird 's eye view",
    "black/white tub/shower/bath and/or w/o w/ it": "black/white tub/shower/bath and/or w/o w / it",
    "5:55 5:55pm 5pm 5 p.m.": "5:55 5:55 pm 5pm 5 p.m.",
    "10-29-2011 11.01.2009 12/25/14": "10-29-2011 11.01.2009 12/25/14",
    "1/2 1 1/2 1½ ½ cup": "1/2 1\u00a01/2 1 1/2 1/2 cup",
    "10,000 10,000.50 2.5 .5": "10,000 10,000.50 2.5 .5",
    "1,000-seat 2-year-old": "1,000-seat 2-year-old",
    "$5.00 £3 €10 5¢ 50%": "$ 5.00 # 3 $ 10 5 cents 50 %",
    "3-2 4x4 1st 21st 747's F-16": "3-2 4x4 1st 21st 747 's f-16",
    "room,12 beds": "room ,12 beds",
    "call 555-1234 or (555) 555-1234": "call 555-1234 or -lrb-555-rrb-\u00a0555-1234",
    "#1 # 25 #tag @user": "# 1 # 25 #tag @user",
    "R&B AT&T Q&A r & b": "r&b at&t q&a r & b",
    "A+ 2+2=4 C++": "a + 2 +2 = 4 c++",
    "a * b ~ c ^ d | e": "a * b ~ c ^ d | e",
    "Mr. Smith lives on Oak St. near Dr. Lee": "mr. smith lives on oak st. near dr. lee",
    "the corner of 8th ave. and 5th St.": "the corner of 8th ave. and 5th st.",
    "a sports etc. vs. others": "a sports etc. vs. others",
    "No. 5 and no. 7, oh no.": "no. 5 and no. 7 oh no",
    "in Wash. they wash. Dry": "in wash. they wash dry",
    "the U.S. Army of the U.S.A.": "the u.s. army of the u.s.a.",
    "a t.v. and a T.V": "a t.v. and a t.v",
    "J. K. Rowling": "j. k. rowling",
    "12th Ave S.": "12th ave s",
    "plan A. The dog": "plan a the dog",
    "Ph.D. e.g. i.e. a.m.": "ph.d. e.g. i.e. a.m.",
    "reads \"80\", 'go' and ``stop''": "reads 80 go and stop",
    "“curly” ‘single’ «angle»": "curly single angle",
    "(a) [b] {c}": "-lrb- a -rrb- -lsb- b -rsb- -lcb- c -rcb-",
    "&amp; &lt;b&gt; <b>bold</b>": "& < b > <b> bold </b>",
    "www.google.com http://x.com/a?b=c a@b.com": "www.google.com http://x.com/a?b=c a@b.com",
    "smile :) or <3": "smile :-rrb- or < 3",
    "café ÑANDÚ Ελλάδα 日本語": "café ñandú ελλάδα 日本語",
    "हिन्दी עִברִית ไทยกิน e\u0301t": "हिन्दी עִברִית ไทยกิน e\u0301t",
    "a\u00a0b\u200bc\ufeffd": "a b c d",
    "soft\u00adhyphen and 😀 emoji": "softhyphen and emoji",
    "10°C ©2014 can´t": "10 ° c © 2014 can ´ t",
    "file_name.txt a_b": "file_name txt a_b",
}

# Letters, marks and blanks that occur in the rules, so that a random caption is likely to be a trap.
ALPHABET = "aAeBnst05'-.,/&\"`’“!?:;()<>@#$%+* \u00a0\t\n\r\u2028é中😀\u00ad_"
WORDS = ["don't", "St.", "U.S.", "A.", "The", "no.", "5", "1/2", "'90s", "cannot", "it's", "x-y", '"so"', "dog,", ":)"]
captions_of_any_kind = st.one_of(
    st.text(ALPHABET, max_size=40),
    st.text(max_size=40),
    st.lists(st.one_of(st.sampled_from(WORDS), st.text(ALPHABET, max_size=4)), max_size=8).map(" ".join),
)


def real_captions():
    """Every caption of the shared data, without line breaks, which the program cannot read."""
    if not (DATA / "caption_refs").is_dir():
        pytest.skip(f"{DATA / 'caption_refs'} is not here")
    files = [*sorted((DATA / "caption_refs").glob("coco_*.json")), *sorted(DATA.glob("*/captions.json"))]
    captions = []
    for file in files:
        content = json.loads(file.read_text("utf-8"))
        captions += [row["caption"] for row in (content["annotations"] if isinstance(content, dict) else content)]
    token_file = DATA / "caption_refs" / "Flickr8k.token.txt"
    captions += [line.split("\t", 1)[1] for line in token_file.read_text("utf-8").splitlines()]
    return [caption.replace("\n", " ") for caption in captions]


def java_says(captions, folder):
    """coco-caption's own answers, by one call for all captions, without its list of punctuation."""
    if shutil.which("java") is None:
        pytest.skip("no java on this machine")
    if importlib.util.find_spec("pycocoevalcap") is None:
        pytest.skip("pycocoevalcap is not installed")
    theirs = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    jar = Path(theirs.__file__).parent / theirs.STANFORD_CORENLP_3_4_1_JAR
    (folder / "captions.txt").write_text("\n".join(captions) + "\n", "utf-8")
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    answer = subprocess.run(
        [*command, str(folder / "captions.txt")],
        capture_output=True,
        check=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    lines = answer.stdout.decode("utf-8").split("\n")[: len(captions)]
    return [" ".join(w for w in line.rstrip(" ").split(" ") if w not in theirs.PUNCTUATIONS) for line in lines]


def test_the_stored_answers_of_coco_caption_are_met():
    recorded = golden("ptb_tokens.json")
    assert len(recorded) == 500
    assert ptb_tokenize(list(recorded)) == list(recorded.values())


def test_every_real_caption_has_the_tokens_of_the_java_program(tmp_path):
    captions = real_captions()
    theirs = java_says(captions, tmp_path)
    ours = ptb_tokenize(captions)
    assert len(theirs) == len(ours) > 50_000
    assert [row for row in zip(captions, ours, theirs, strict=True) if row[1] != row[2]] == []


def test_the_table_and_the_stored_answers_are_what_the_java_program_says(tmp_path):
    """Each caption is followed by a line that starts a new sentence, which stands for the end of the caption."""
    expected = {**golden("ptb_tokens.json"), **TABLE}
    rows = [line for caption in expected for line in (caption, "A man.")]
    assert java_says(rows, tmp_path)[::2] == list(expected.values())


@pytest.mark.parametrize(("caption", "tokens"), TABLE.items())
def test_a_caption_has_the_tokens_of_the_penn_treebank(caption, tokens):
    assert ptb_tokenize([caption]) == [tokens]


@settings(max_examples=500, deadline=None)
@given(captions_of_any_kind)
def test_words_from_memory_are_those_the_scanner_finds(caption):
    assert ptb_tokenize([caption]) == [ptb_tokenizer._scan(caption, from_memory=False)[1:]]


def test_easy_real_captions_are_those_the_scanner_finds():
    captions = real_captions()[::40]
    assert ptb_tokenize(captions) == [ptb_tokenizer._scan(caption, from_memory=False)[1:] for caption in captions]


@settings(max_examples=300, deadline=None)
@given(captions_of_any_kind)
def test_a_rule_matches_only_where_it_says_that_it_begins(caption):
    for place in range(len(caption)):
        kind = ptb_tokenizer.LETTER_OR_DIGIT.match(caption, place)
        kind = "." if kind is None else "a" if kind[1] else "0"
        others = [rule for rule in ptb_tokenizer.RULES if kind not in rule.begins]
        assert [rule for rule in others if re.compile(rule.token + rule.context).match(caption, place)] == []


@settings(max_examples=300, deadline=None)
@given(st.lists(captions_of_any_kind, max_size=5))
def test_a_caption_is_read_without_its_neighbours(captions):
    assert ptb_tokenize(captions) == [ptb_tokenize([caption])[0] for caption in captions]


@settings(max_examples=500, deadline=None)
@given(captions_of_any_kind)
def test_tokens_are_lower_case_words_with_one_blank_between(caption):
    (tokens,) = ptb_tokenize([caption])
    assert len(tokens.splitlines()) <= 1
    assert "  " not in tokens
    assert tokens == tokens.strip(" ")
    assert not set(tokens.split(" ")) & ptb_tokenizer.PUNCTUATION


@pytest.mark.parametrize("line_break", ["\n", "\r", "\r\n", "\v", "\f", "\x85", "\u2028", "\u2029"])
def test_an_embedded_line_break_does_not_shift_the_next_caption(line_break):
    captions = [f"a dog{line_break}on St.{line_break}", "a cat", f"{line_break}two birds."]
    assert ptb_tokenize(captions) == ["a dog on st.", "a cat", "two birds"]


def test_no_captions_and_empty_captions_have_no_tokens():
    assert ptb_tokenize([]) == []
    assert ptb_tokenize(["", " ", ".", "\n", "😀"]) == [""] * 5


def test_a_single_string_is_refused():
    with pytest.raises(ValueError, match=r"captions is a single string; pass a list"):
        ptb_tokenize("a dog")


@pytest.mark.parametrize("wrong", [None, 3, b"a dog", ["a dog"]])
def test_a_caption_that_is_no_string_is_refused_with_its_row(wrong):
    with pytest.raises(ValueError, match=r"captions\[1\] is .* of type .*; pass a string for every caption"):
        ptb_tokenize(["a dog", wrong])


@pytest.mark.parametrize(
    "caption",
    [
        *("no. 5", "no. of", "1 1/2 cup", "1 a", "(555) 555-1234", "(555) a", "plan A. The dog", "A. a", ". . . a"),
        *(". a", "<a b> c", "a < b", "no.\u00ad 5", "12th Ave S.", "fig. 3 and fig. a", "a dog . The"),
    ],
)
def test_a_word_whose_tokens_depend_on_what_follows_is_not_remembered(caption):
    assert ptb_tokenize([caption] * 2) == [ptb_tokenizer._scan(caption, from_memory=False)[1:]] * 2


def test_references_are_tokenised_once_a_run():
    references = [["a dog runs", "the dog runs"], ["two cats", "cats"]]
    frequency = DocumentFrequency.from_references(references, append_eos=True)
    misses = ngrams._ptb_tokens.cache_info().misses
    CiderReward(frequency)(["a dog", "a cat"], references)
    coco_captions(["a dog", "a cat"], references)
    assert ngrams._ptb_tokens.cache_info().misses == misses


def test_a_caption_of_ten_thousand_words_is_quick():
    began = time.perf_counter()
    assert ptb_tokenize(["A dog, don't. " * 5000]) == [" ".join(["a dog do n't"] * 5000)]
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    "unit",
    [
        *"a.-<1'&/ ",
        "a.",
        "a-",
        "a,",
        "a'",
        "a@",
        "a/",
        "1 ",
        "1-",
        "a..5",
        "<a ",
        "n't",
        "a.5",
        "(1",
        "o'",
        "😀",
        "x.com/",
    ],
)
def test_a_long_caption_takes_time_in_proportion(unit):
    """A caption that is four times as long takes about four times as long: no rule reads anything twice."""

    def seconds(length):
        caption = unit * (length // len(unit)) + "!"
        began = time.process_time()
        ptb_tokenize([caption])
        return time.process_time() - began

    assert seconds(20_000) < 8 * seconds(5_000) + 0.1
