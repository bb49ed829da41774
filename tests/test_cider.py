"""CIDEr-D and its companions: coco-caption's own numbers, cases computed by hand, and captions that must not pay."""

import logging
import math

import evaluate
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recorded import golden

import vision_rl
from vision_rl.tasks.captioning import (
    CiderReward,
    DocumentFrequency,
    bleu,
    cider_d,
    coco_captions,
    plain_cider,
    rouge_l,
)
from vision_rl.tasks.captioning.ngrams import END, count_ngrams
from vision_rl.trainer.advantages import leave_one_out_advantages


EXACT = 1e-9


# The reference's numbers: for captions whose words are numbers, and for captions of our own


@pytest.fixture(scope="module")
def corpus():
    return golden("cider_corpus.json")


def of_cases(content, *keys):
    return [[case[key] for case in content["cases"]] for key in keys]


def test_every_captions_score_equals_coco_captions_with_the_frequencies_of_the_references(corpus):
    candidates, references, expected, expected_plain = of_cases(
        corpus, "candidate", "references", "cider_d", "plain_cider"
    )
    scores = cider_d(candidates, references, tokenize=None)
    assert np.abs(scores - expected).max() < EXACT
    assert scores.mean() == pytest.approx(corpus["cider_d"], abs=EXACT)
    assert np.abs(plain_cider(candidates, references, tokenize=None) - expected_plain).max() < EXACT


def test_bleu_and_rouge_equal_coco_captions(corpus):
    candidates, references, expected_rouge, expected_bleu = of_cases(
        corpus, "candidate", "references", "rouge_l", "bleu_4"
    )
    assert bleu(candidates, references, tokenize=None) == pytest.approx(corpus["bleu"], abs=EXACT)
    assert np.abs(rouge_l(candidates, references, tokenize=None) - expected_rouge).max() < EXACT
    assert [bleu([c], [r], tokenize=None)[3] for c, r in zip(candidates, references, strict=True)] == pytest.approx(
        expected_bleu, abs=EXACT
    )


def test_raw_captions_reach_coco_captions_numbers_through_our_own_tokenizer():
    content = golden("captions.json")
    measured = coco_captions(*of_cases(content, "candidate", "references"))
    assert measured["cider"] == pytest.approx(content["cider"], abs=EXACT)
    assert measured["rouge_l"] == pytest.approx(content["rouge_l"], abs=EXACT)
    assert [measured[f"bleu_{n}"] for n in (1, 2, 3, 4)] == pytest.approx(content["bleu"], abs=EXACT)


@pytest.mark.parametrize("append_eos", [False, True])
def test_scores_with_fixed_frequencies_equal_the_reference_with_and_without_an_end_token(append_eos):
    content, eos = golden("cider_fixed_frequencies.json"), "_eos" if append_eos else ""
    frequency = DocumentFrequency.from_references(content["frequencies"]["references"], append_eos, tokenize=None)
    probe = content["frequencies"]["with_eos" if append_eos else "without_eos"]
    assert len(frequency) == probe["num_ngrams"]
    assert frequency.counts.sum() == probe["sum_of_counts"] and frequency.counts.max() == probe["max"]
    ngrams = [ngram.replace("<eos>", END) for ngram in probe["counts"]]
    assert frequency.of_ngrams(ngrams).tolist() == list(probe["counts"].values())
    pairs = [(case, candidate) for case in content["cases"] for candidate in case["candidates"]]
    arguments = [candidate["tokens"] for _, candidate in pairs], [case["references"] for case, _ in pairs]
    for score, name in ((cider_d, "cider_d"), (plain_cider, "plain_cider")):
        scores = score(*arguments, frequency, append_eos, tokenize=None)
        assert np.abs(scores - [candidate[name + eos] for _, candidate in pairs]).max() < EXACT
    if append_eos:
        reward = CiderReward(frequency)(
            [candidate["tokens"] for _, candidate in pairs], references=[case["references"] for case, _ in pairs]
        )
        advantages = leave_one_out_advantages(
            torch.tensor(reward, dtype=torch.float64).view(len(content["cases"]), -1)
        )
        expected = torch.tensor(
            [case["leave_one_out_advantage_of_cider_d_eos"] for case in content["cases"]], dtype=torch.float64
        )
        assert (advantages - expected).abs().max() < EXACT


def test_rewards_of_token_ids_equal_self_critical_training_and_so_does_the_advantage():
    content = golden("self_critical.npz")

    def text(ids):
        """The ids as words, up to and including the end. The end is id 0, a word like the others."""
        ids = list(ids)
        return " ".join(map(str, ids[: ids.index(0) + 1] if 0 in ids else ids))

    splits = np.split(content["references"], np.cumsum(content["references_per_image"])[:-1])
    references = [[text(ids) for ids in image] for image in splits for _ in range(6)]
    captions = iter(np.split(content["frequency_ids"], np.cumsum(content["frequency_lengths"])[:-1]))
    frequency = DocumentFrequency.from_references(
        [[text(next(captions)) for _ in range(count)] for count in content["frequency_references_per_image"]],
        tokenize=None,
    )
    assert len(frequency) == content["num_ngrams"] and frequency.counts.sum() == content["sum_of_counts"]
    assert frequency.num_images == content["num_images"]
    scores = cider_d([text(ids) for ids in content["sampled"]], references, frequency, tokenize=None).reshape(-1, 6)
    assert np.abs(scores - content["cider_d"]).max() < EXACT
    advantages = leave_one_out_advantages(torch.tensor(scores)).numpy()
    assert np.abs(advantages - content["leave_one_out_advantage"]).max() < EXACT
    greedy = scores[:, [int(content["greedy_index"])]]
    assert np.abs(scores - greedy - content["self_critical_reward"]).max() < EXACT


captions = st.lists(st.sampled_from(["a", "dog", "cat", "on", "runs"]), max_size=8).map(" ".join)


@given(
    st.lists(st.tuples(captions, st.lists(captions, min_size=1, max_size=3)), min_size=1, max_size=6).filter(
        lambda pairs: any(any(references) for _, references in pairs)  # pycocoevalcap fails without any word
    )
)
def test_scores_of_random_captions_equal_pycocoevalcap(pairs):
    cider = pytest.importorskip("pycocoevalcap.cider.cider", reason="pycocoevalcap is not installed")
    bleu_module = pytest.importorskip("pycocoevalcap.bleu.bleu", reason="pycocoevalcap is not installed")
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge", reason="pycocoevalcap is not installed")
    candidates, references = map(list, zip(*pairs, strict=True))
    gts = dict(enumerate(references))
    res = {row: [candidate] for row, candidate in enumerate(candidates)}
    assert cider_d(candidates, references, tokenize=None) == pytest.approx(
        cider.Cider().compute_score(gts, res)[1], abs=EXACT
    )
    assert bleu(candidates, references, tokenize=None) == pytest.approx(
        bleu_module.Bleu(4).compute_score(gts, res, verbose=0)[0], abs=EXACT
    )
    filled = [row for row in gts if candidates[row] and all(references[row])]  # there "" is a word
    if filled:
        expected = rouge.Rouge().compute_score({row: gts[row] for row in filled}, {row: res[row] for row in filled})[1]
        found = rouge_l([candidates[row] for row in filled], [references[row] for row in filled], tokenize=None)
        assert found == pytest.approx(expected, abs=EXACT)


# By hand


def test_a_caption_equal_to_its_only_reference_scores_ten():
    assert cider_d(["a dog runs fast", "two cats"], [["a dog runs fast"], ["a bird sings"]])[0] == pytest.approx(10)


def test_unigrams_by_hand():
    # Each word is in one of two images, so every n-gram weighs log 2. "dog" and "dog runs" have a cosine of 1 / sqrt(2)
    # in single words, and no longer n-gram in common. Their lengths differ by one bigram.
    score = cider_d(["dog"], [["dog runs"]], DocumentFrequency.from_references([["dog runs"], ["cat"]]))
    assert score[0] == pytest.approx(10 / 4 * (1 / math.sqrt(2)) * math.exp(-1 / 72))


def test_a_single_image_has_no_rare_words_so_its_score_is_zero():
    assert cider_d(["a dog"], [["a dog"]]).tolist() == [0.0]


@pytest.mark.parametrize("append_eos", [False, True])
def test_empty_candidates_and_references_score_zero_and_not_nan(append_eos):
    references = [["a dog", "the dog runs"], [""], ["", "two cats"]]
    scores = cider_d(["", "two cats", ""], references, append_eos=append_eos)
    assert np.isfinite(scores).all() and scores[0] < 0.2
    frequency = DocumentFrequency.from_references([[""], [""]])
    assert len(frequency) == 0 and cider_d(["a dog"], [["a dog"]], frequency)[0] == pytest.approx(5)


def test_unicode_and_line_breaks_do_not_matter_to_the_alignment_of_captions():
    references = [["ein Café mit Ausblick"], ["two\ncats\u2028sleep"], ["犬 が 走る"]]
    scores = cider_d(["Ein café mit Ausblick", "two cats sleep", "犬 が 走る"], references)
    assert scores == pytest.approx([10.0, 7.5, 7.5])  # three words have no 4-gram


def test_very_long_captions_are_scored():
    caption = " ".join(f"word{n % 5000}" for n in range(20_000))
    scores = cider_d([caption, "a dog"], [[caption], ["a dog"]])
    assert scores == pytest.approx([10.0, 5.0])


def test_the_score_of_an_image_does_not_depend_on_how_often_its_references_are_repeated_in_the_batch():
    frequency = DocumentFrequency.from_references([["a dog runs"], ["a cat"], ["the bird"]])
    references = [["a dog runs", "the dog"]] * 4 + [["a cat"]]
    together = cider_d(["a dog", "dog", "the dog runs", "a cat", "a cat"], references, frequency)
    alone = [
        cider_d([c], [r], frequency)[0]
        for c, r in zip(["a dog", "dog", "the dog runs", "a cat", "a cat"], references, strict=True)
    ]
    assert together == pytest.approx(alone, abs=EXACT)


def test_ngrams_are_counted_within_a_caption_and_not_across_two():
    ngrams = count_ngrams(["a b", "", "b a b"])
    assert np.bincount(ngrams.caption, ngrams.count, 3).tolist() == [3, 0, 6]
    assert len(ngrams.hashes) == 2 + 2 + 1  # a and b; ab and ba; bab
    assert ngrams.num_words.tolist() == [2, 0, 3]


def test_frequencies_count_images_and_not_captions():
    frequency = DocumentFrequency.from_references([["a dog", "a dog runs", "the dog"], ["a cat"]], append_eos=True)
    assert frequency.of_ngrams(["dog", "a", "a dog", f"dog {END}", END, "bird"]).tolist() == [1, 2, 1, 1, 2, 0]
    assert frequency.num_images == 2


def test_frequencies_of_many_images_are_those_of_their_parts():
    references = [[f"word{n % 7} of image {n}"] for n in range(5000)]  # more images than are counted at once
    frequency = DocumentFrequency.from_references(references)
    assert frequency.of_ngrams(["of image", "word0", "image 4999"]).tolist() == [5000, 715, 1]


# Metric and modules


def test_metric_names_captions_that_break_off():
    measured = coco_captions(["a man with a", "a man on a bike"], [["a man with a hat"], ["a man on a bike"]])
    assert measured["unfinished"] == 0.5 and measured["mean_length"] == 4.5
    assert measured["rouge_l"] == pytest.approx(np.mean(measured["per_caption_rouge_l"]))
    assert measured["cider"] == pytest.approx(np.mean(measured["per_caption_cider"]))


def test_the_metric_module_gives_the_metrics_numbers_and_those_of_each_caption(tmp_path):
    references = [["a dog runs on grass", "a dog on the grass"], ["two cats sleep", "two sleeping cats"]]
    predictions = ["A dog on the grass.", "two dogs"]
    module = evaluate.load(vision_rl.metric_path("cider"))
    measured = module.compute(predictions=predictions, references=references)
    assert measured == coco_captions(predictions, references)
    frequency = DocumentFrequency.from_references([*references, ["a bird"]])
    frequency.save(tmp_path / "df.npz")
    measured = module.compute(
        predictions=predictions, references=references, document_frequency=str(tmp_path / "df.npz")
    )
    assert measured["per_caption_cider"] == cider_d(predictions, references, frequency).tolist()


def test_the_reward_module_gives_the_rewards_and_needs_frequencies():
    references = [["a dog runs on grass", "a dog on the grass"], ["two cats sleep", "two sleeping cats"]]
    frequency = DocumentFrequency.from_references(references, append_eos=True)
    module = evaluate.load(vision_rl.metric_path("cider_reward"), document_frequency=frequency)
    predictions = ["a dog on the grass", "two cats"]
    result = module.compute(predictions=predictions, references=references)
    assert result["rewards"] == CiderReward(frequency)(predictions, references=references)
    assert result["reward"] == pytest.approx(np.mean(result["rewards"]))
    with pytest.raises(ValueError, match="Say how common each n-gram is"):
        evaluate.load(vision_rl.metric_path("cider_reward"))


# The reward, and what must not pay


REFERENCES = [
    ["a man in a red shirt rides a bike", "a man riding a bike in a red shirt", "a cyclist in a red shirt"],
    ["a dog runs on the beach", "a brown dog running on a beach", "the dog is on the beach"],
    ["two children play with a ball", "children playing with a ball", "two kids with a ball"],
    ["a woman with a hat", "a woman in a hat", "a woman wears a hat"],
]


@pytest.fixture
def reward():
    return CiderReward(DocumentFrequency.from_references(REFERENCES, append_eos=True))


def test_a_caption_that_breaks_off_is_paid_less_than_the_whole_one(reward):
    whole, broken = "a dog running on a beach", "a dog running on a"
    rewards = reward([whole, broken], references=[REFERENCES[1]] * 2)
    assert rewards[0] > 1.5 * rewards[1]


def test_the_end_token_is_what_makes_breaking_off_expensive():
    # "with a ball" against "with a": without an end token, the unfinished caption loses only one word.
    finished, unfinished = "two children with a ball", "two children with a"
    shares = []
    for append_eos in (False, True):
        frequency = DocumentFrequency.from_references(REFERENCES, append_eos)
        one, other = CiderReward(frequency, append_eos)([finished, unfinished], references=[REFERENCES[2]] * 2)
        shares.append(other / one)
    assert shares[1] < shares[0]


def test_a_caption_cut_off_at_the_token_limit_has_no_end(reward):
    reward.eos_token_id = 1
    text, references = "a dog on the beach", [REFERENCES[1]] * 2
    ended, cut = reward([text, text], references=references, completion_ids=[[5, 6, 1], [5, 6, 7]])
    assert ended > cut


def test_the_end_cannot_be_written_into_a_caption(reward):
    reward.eos_token_id = 1
    texts = ["a dog on the beach", "a dog on the beach <eos>", f"a dog on the beach {END}"]
    cut, *written = reward(texts, references=[REFERENCES[1]] * 3, completion_ids=[[5, 7]] * 3)
    assert max(written) <= cut


def test_a_reward_that_does_not_know_the_end_token_says_so_once(reward, caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            reward(["a dog"], references=[REFERENCES[1]], completion_ids=[[5]])
    assert len(caplog.records) == 1 and "pass eos_token_id" in caplog.text


def test_repetition_does_not_pay(reward):
    once, doubled, words = "a dog on the beach", "a dog on the beach on the beach", "dog dog dog beach beach beach"
    rewards = reward([once, doubled, words], references=[REFERENCES[1]] * 3)
    assert rewards[0] > rewards[1] > rewards[2]
    assert reward(["dog beach " * 20], references=[REFERENCES[1]])[0] < 0.01  # by the length penalty


def test_an_empty_caption_earns_next_to_nothing(reward):
    empty, poor = reward(["", "a dog"], references=[REFERENCES[1]] * 2)
    assert 0 <= empty < 0.1 * poor


def test_the_reward_takes_messages_as_well_as_strings(reward):
    texts = ["a dog", "a cat"]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    references = [REFERENCES[1]] * 2
    assert reward(messages, references=references) == reward(texts, references=references)


@pytest.mark.parametrize("score", [cider_d, plain_cider])
def test_a_reward_is_saved_and_loaded_with_its_frequencies(tmp_path, score):
    reward = CiderReward(DocumentFrequency.from_references(REFERENCES), append_eos=False, eos_token_id=7, score=score)
    reward.save_pretrained(tmp_path)
    loaded = CiderReward.from_pretrained(tmp_path)
    assert loaded.append_eos is False and loaded.eos_token_id == 7 and loaded.score is score
    assert loaded(["a dog"], references=[REFERENCES[1]]) == reward(["a dog"], references=[REFERENCES[1]])
    with pytest.raises(FileNotFoundError, match="no CiderReward was saved there"):
        CiderReward.from_pretrained(tmp_path / "reward")


# Bad input


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        (
            ["a dog", "a cat"],
            ["a dog", "a cat"],
            r"references must have a list of captions per image.*entry 0 is the str",
        ),
        (["a dog"], "a dog", "references must have a list of captions per image"),
        ([], [], "references must have a list of captions per image"),
        (["a dog"], [[]], "Image 0 has no reference"),
        (["a dog"], [["a dog", None]], "image 0 has a NoneType: None"),
        (["a dog"], [["a dog"], ["a cat"]], "1 captions but the references of 2 images"),
        ([None], [["a dog"]], "caption 0 is a NoneType"),
        ("a dog", [["a dog"]], "they are the string 'a dog'"),
    ],
)
def test_what_cannot_be_compared_is_refused(candidates, references, message):
    for score in (cider_d, coco_captions, bleu, rouge_l):
        with pytest.raises(ValueError, match=message):
            score(candidates, references)


def test_frequencies_and_captions_must_agree_about_the_end_token():
    frequency = DocumentFrequency.from_references(REFERENCES)
    with pytest.raises(ValueError, match="counted with append_eos=False"):
        CiderReward(frequency)
    with pytest.raises(ValueError, match="both must be the same"):
        cider_d(["a dog"], [["a dog"]], frequency, append_eos=True)
    with pytest.raises(TypeError, match="document_frequency is a str"):
        CiderReward("df.npz")
    with pytest.raises(TypeError, match="document_frequency is a str"):
        cider_d(["a dog"], [["a dog"]], "df.npz")
    with pytest.raises(ValueError, match="append_eos has 2 entries for 1 captions"):
        cider_d(["a dog"], [["a dog"]], append_eos=[True, False])
    with pytest.raises(ValueError, match="score must be"):
        CiderReward(frequency, append_eos=False, score=max)


def test_a_frequency_file_of_another_version_or_kind_is_refused(tmp_path):
    frequency = DocumentFrequency.from_references(REFERENCES)
    frequency.save(tmp_path / "df.npz")
    content = dict(np.load(tmp_path / "df.npz"))
    np.savez(tmp_path / "later.npz", **content | {"version": 2})
    with pytest.raises(ValueError, match="is of version 2, but this vision_rl reads version 1"):
        DocumentFrequency.load(tmp_path / "later.npz")
    np.savez(tmp_path / "other.npz", weights=np.ones(3))
    with pytest.raises(ValueError, match=r"holds \['weights'\] and no document frequencies"):
        DocumentFrequency.load(tmp_path / "other.npz")
    (tmp_path / "text.npz").write_text("a dog")
    (tmp_path / "empty.npz").write_text("")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "df.npz").read_bytes()[:200])
    np.save(tmp_path / "array.npy", np.ones(3))
    for name in ("text.npz", "empty.npz", "cut.npz", "array.npy"):
        with pytest.raises(ValueError, match="holds no document frequencies"):
            DocumentFrequency.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        DocumentFrequency.load(tmp_path / "absent.npz")
