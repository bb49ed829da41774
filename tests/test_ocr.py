"""Reading text: edit distance against rapidfuzz, rewards and evaluate modules, the tokenizer, the pictures."""

import copy
import pickle
import subprocess
import sys

import evaluate
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rapidfuzz.distance import Levenshtein
from transformers import AutoTokenizer

import vision_rl
from vision_rl.tasks.ocr import drawing
from vision_rl.tasks.ocr.drawing import draw, draw_grid
from vision_rl.tasks.ocr.rewards import (
    character_accuracy_reward,
    character_error_rate,
    edit_distance,
    exact_match_reward,
)
from vision_rl.tasks.ocr.tokenizer import character_tokenizer


words = st.text("ab1é", max_size=12) | st.text(max_size=12)


# Edit distance


@pytest.mark.parametrize(
    ("a", "b", "edits"),
    [("kitten", "sitting", 3), ("", "", 0), ("", "407", 3), ("407", "", 3), ("40719", "46719", 1), ("12", "21", 2)],
)
def test_edit_distance_of_hand_computed_pairs(a, b, edits):
    assert edit_distance(a, b) == edits


@given(words, words)
def test_edit_distance_equals_rapidfuzz(a, b):
    assert edit_distance(a, b) == Levenshtein.distance(a, b)


@given(words, words)
def test_edit_distance_is_symmetric_and_zero_only_for_equal_texts(a, b):
    assert edit_distance(a, b) == edit_distance(b, a)
    assert (edit_distance(a, b) == 0) == (a == b)


@given(words, words, words)
def test_edit_distance_obeys_the_triangle_inequality(a, b, c):
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)


# Rewards


def test_exact_match_pays_only_for_every_character():
    assert exact_match_reward(["407", "40", ""], ["407", "407", "407"]) == [1.0, 0.0, 0.0]


def test_character_accuracy_is_the_share_of_the_reference_that_needs_no_edit():
    assert character_accuracy_reward(["4071", "4079", "", "40 79"], ["4079"] * 4) == [0.75, 1.0, 0.0, 0.75]


def test_character_accuracy_of_a_text_that_runs_on_is_zero_and_not_negative():
    assert character_accuracy_reward(["1" * 40], ["407"]) == [0.0]


def test_empty_reference_pays_only_an_empty_completion():
    assert character_accuracy_reward(["", "4"], ["", ""]) == [1.0, 0.0]


@given(st.lists(st.tuples(words, words), min_size=1, max_size=4))
def test_rewards_stay_in_0_to_1_and_are_1_exactly_when_the_text_is_right(pairs):
    completions, references = map(list, zip(*pairs, strict=True))
    exact = exact_match_reward(completions, references)
    for reward, match in zip(character_accuracy_reward(completions, references), exact, strict=True):
        assert 0 <= reward <= 1 and (reward == 1) == (match == 1)


@pytest.mark.parametrize("reward", [exact_match_reward, character_accuracy_reward])
def test_rewards_take_what_a_trl_trainer_passes(reward):
    rewards = reward(completions=["4", "5"], completion_ids=[[6, 1], [7, 1]], references=["4", "4"], text=["4", "4"])
    assert rewards == [1.0, 0.0] and all(type(value) is float for value in rewards)


# Character error rate


def test_error_rate_sums_edits_and_characters_over_the_corpus():
    # 1 edit in 1 character and 0 in 3 make 1 / 4 over the corpus; the mean of 1 and 0 would be wrong
    assert character_error_rate(["5", "123"], ["4", "123"]) == {"cer": 0.25, "exact_match": 0.5}


def test_error_rate_exceeds_one_when_predictions_run_on():
    assert character_error_rate(["11111"], ["22"]) == {"cer": 2.5, "exact_match": 0.0}


def test_insertions_into_an_empty_reference_count_for_the_corpus():
    assert character_error_rate(["77", "1234"], ["", "1234"])["cer"] == 0.5


def test_error_rate_does_not_strip_spaces():
    assert character_error_rate([" 12"], ["12"])["cer"] == 0.5


@given(st.lists(st.tuples(words, words.filter(bool)), min_size=1, max_size=4))
def test_error_rate_equals_rapidfuzz_over_the_corpus(pairs):
    predictions, references = map(list, zip(*pairs, strict=True))
    edits = sum(Levenshtein.distance(prediction, reference) for prediction, reference in pairs)
    assert character_error_rate(predictions, references)["cer"] == edits / len("".join(references))


@pytest.mark.parametrize("score", [exact_match_reward, character_accuracy_reward, character_error_rate])
@pytest.mark.parametrize(
    ("texts", "references", "message"),
    [
        (["4", "5"], ["4"], "There are 2 .* but 1 references"),
        (["4", 5], ["4", "5"], "row 1 is a int: 5"),
        (["4", "5"], ["4", None], "references must be strings; row 1 is a NoneType"),
        (["4", "5"], "45", "references must be a list of strings"),
    ],
)
def test_bad_input_is_refused_with_its_row(score, texts, references, message):
    with pytest.raises(ValueError, match=message):
        score(texts, references)


@pytest.mark.parametrize("rows", [0, 2])
def test_error_rate_of_empty_references_is_refused(rows):
    with pytest.raises(ValueError, match="All references are empty"):
        character_error_rate([""] * rows, [""] * rows)


# Evaluate modules

PREDICTIONS, REFERENCES = ["40719", "12", "", "88888"], ["46719", "12", "7", "888"]


def test_metric_module_equals_the_function():
    module = evaluate.load(vision_rl.metric_path("character_error_rate"))
    result = module.compute(predictions=PREDICTIONS, references=REFERENCES)
    assert result == character_error_rate(PREDICTIONS, REFERENCES) == {"cer": 4 / 11, "exact_match": 0.25}


@pytest.mark.parametrize(
    ("kind", "reward"), [("character_accuracy", character_accuracy_reward), ("exact_match", exact_match_reward)]
)
def test_reward_module_equals_the_reward_of_training(kind, reward):
    module = evaluate.load(vision_rl.metric_path("ocr_reward"))
    result = module.compute(predictions=PREDICTIONS, references=REFERENCES, kind=kind)
    rewards = reward(PREDICTIONS, REFERENCES)
    assert result == {"reward": sum(rewards) / 4, "rewards": rewards}


def test_reward_module_defaults_to_character_accuracy_and_names_its_kinds():
    module = evaluate.load(vision_rl.metric_path("ocr_reward"))
    assert module.compute(predictions=["4071"], references=["4079"])["rewards"] == [0.75]
    with pytest.raises(ValueError, match="'character_accuracy', 'exact_match'; it is 'wer'"):
        module.compute(predictions=["4"], references=["4"], kind="wer")


@pytest.mark.parametrize("name", ["character_error_rate", "ocr_reward"])
def test_examples_of_the_module_description_run_as_printed(name):
    module = evaluate.load(vision_rl.metric_path(name))
    lines = [line.strip() for line in module.inputs_description.splitlines()]
    examples = [
        (line[4:], lines[i + 1]) for i, line in enumerate(lines) if line.startswith(">>>") and "load" not in line
    ]
    assert examples
    for call, printed in examples:
        assert repr(eval(call, {"cer": module, "reward": module})) == printed


def test_rewards_import_neither_torch_nor_transformers():
    # The file is loaded by itself, because its package imports the processor too.
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('rewards', {sys.modules[edit_distance.__module__].__file__!r})\n"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer("0123456789")


def test_ids_are_pad_end_and_the_alphabet_in_order(tokenizer):
    assert len(tokenizer) == 12
    assert tokenizer.convert_ids_to_tokens(range(12)) == ["<pad>", "</s>", *"0123456789"]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 0, 1)
    assert tokenizer.unk_token is None


def test_a_text_is_one_id_a_character_and_nothing_is_added(tokenizer):
    assert tokenizer("40719").input_ids == [6, 2, 9, 3, 11]
    assert tokenizer("").input_ids == []
    assert tokenizer(["4", "07"], padding=True).input_ids == [[6, 0], [2, 9]]


def test_decoding_skips_special_tokens_and_puts_no_spaces(tokenizer):
    assert tokenizer.decode([0, 6, 2, 9, 1, 0], skip_special_tokens=True) == "407"
    assert tokenizer.batch_decode([[6, 2, 1], [1, 0]], skip_special_tokens=True) == ["40", ""]


@given(st.text("aB é你😀\n\t.'", max_size=20))
def test_encoding_and_decoding_is_the_identity_on_any_alphabet(text):
    tokenizer = character_tokenizer("aB é你😀\n\t.'")
    ids = tokenizer(text).input_ids
    assert len(ids) == len(text) and tokenizer.decode(ids, skip_special_tokens=True) == text


def test_unknown_characters_are_named(tokenizer):
    with pytest.raises(ValueError, match=r"no id for ' ', 'x' in text 1, '4x 7'"):
        tokenizer(["407", "4x 7"])
    with pytest.raises(ValueError, match=r"no id for 'x' in text 0, '4x7'"):
        tokenizer.encode("4x7")


def test_the_end_token_written_in_a_text_is_not_taken_for_one(tokenizer):
    with pytest.raises(ValueError, match="no id for '/', '<', '>', 's'"):
        tokenizer("4</s>")
    assert character_tokenizer("</s>4")("4</s>").input_ids == [6, 2, 3, 4, 5]


def test_saved_tokenizer_is_loaded_by_auto_tokenizer_and_still_refuses_unknown_characters(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("40719").input_ids == tokenizer("40719").input_ids
    assert loaded.decode([0, 6, 2, 9, 1], skip_special_tokens=True) == "407"
    assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id, len(loaded)) == (0, 0, 1, 12)
    for text in ("4x7", "4</s>"):
        with pytest.raises(Exception, match=r"Missing \[UNK\] token"):
            loaded(text)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_tokenizer_can_be_copied_and_sent_to_a_worker(tokenizer, clone):
    assert clone(tokenizer)("407").input_ids == [6, 2, 9]


@pytest.mark.parametrize(("alphabet", "message"), [("", "alphabet is empty"), ("0110", "'0', '1' more than once")])
def test_bad_alphabets_are_refused(alphabet, message):
    with pytest.raises(ValueError, match=message):
        character_tokenizer(alphabet)


# Drawing


def colours_below(picture, image, scale=4):
    below = picture.crop((0, image.height * scale, picture.width, picture.height))
    return {colour for _, colour in below.getcolors(below.width * below.height)}


@pytest.fixture(params=["L", "RGB", "1"])
def image(request):
    return Image.linear_gradient("L").resize((112, 32)).convert(request.param)


def test_drawing_keeps_the_image_enlarged_pixel_by_pixel(image):
    picture = draw(image, "407", width=448)
    assert picture.mode == "RGB" and picture.width == 448 and picture.height > 128
    shown = picture.crop((0, 0, 448, 128))
    assert shown.tobytes() == image.convert("RGB").resize((448, 128), Image.Resampling.NEAREST).tobytes()


@pytest.mark.parametrize(
    ("completion", "reference", "colour"),
    [
        ("407", "407", drawing.RIGHT),
        ("409", "407", drawing.WRONG),
        ("", "407", drawing.WRONG),
        ("409", None, drawing.UNJUDGED),
    ],
)
def test_a_completion_is_green_when_right_red_when_wrong_dark_without_a_reference(
    image, completion, reference, colour
):
    shown = colours_below(draw(image, completion, reference), image)
    assert shown & {drawing.RIGHT, drawing.WRONG, drawing.UNJUDGED} == {colour}


def test_before_and_after_are_two_lines_each_in_its_own_colour(image):
    completions = {"before": "409", "after": "407"}
    picture = draw(image, completions, "407")
    assert {drawing.RIGHT, drawing.WRONG, drawing.LABEL} <= colours_below(picture, image)
    assert picture.height > draw(image, "407", "407").height


def test_samples_stand_side_by_side_each_in_its_own_colour(image):
    picture = draw(image, {"samples": ["409", "407", "407"]}, "407")
    assert {drawing.RIGHT, drawing.WRONG} <= colours_below(picture, image)
    assert picture.height == draw(image, {"samples": "407"}, "407").height
    assert picture.width >= draw(image, {"samples": ["409", "407"]}, "407").width


def test_a_text_wider_than_the_image_widens_the_picture(image):
    picture = draw(image, "1" * 60, "407")
    assert picture.width > 448
    right_margin = picture.crop((picture.width - 4, 0, picture.width, picture.height))
    assert right_margin.getcolors() == [(4 * picture.height, drawing.PAPER)]


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (4, 4, 1), (5, 4, 2)])
def test_grid_has_as_many_columns_as_it_needs(count, columns, rows):
    grid = draw_grid([Image.new("RGB", (10, 20))] * count, columns=4, gap=2)
    assert grid.size == (columns * 12 + 2, rows * 22 + 2)
    assert grid.convert("L").point(lambda value: value == 0).getcolors(2)[-1] == (count * 10 * 20, 1)


def test_headings_stand_above_their_columns_and_move_nothing_else():
    pictures = [Image.new("RGB", (60, 20))] * 4
    plain, named = draw_grid(pictures, columns=2, gap=2), draw_grid(pictures, columns=2, gap=2, headings=("a", "b"))
    top = named.height - plain.height
    assert top > 0 and named.crop((0, top, *named.size)).tobytes() == plain.tobytes()
    for column in (0, 1):
        above = named.crop((2 + column * 62, 0, 62 + column * 62, top)).convert("L")
        assert above.getextrema()[0] < 128  # ink


def test_empty_grid_is_refused():
    with pytest.raises(ValueError, match="no pictures"):
        draw_grid([])


def test_the_room_shows_processor_rewards_metric_and_drawing():
    from vision_rl.tasks import ocr

    assert ocr.TextProcessor is vision_rl.TextProcessor
    assert ocr.draw is draw and ocr.character_error_rate is character_error_rate
    assert {ocr.character_accuracy_reward, ocr.exact_match_reward} == {character_accuracy_reward, exact_match_reward}


def test_the_reward_by_character_logs_how_many_texts_are_right():
    logged = {}
    rewards = character_accuracy_reward(["407", "409", "4"], ["407"] * 3, log_metric=logged.__setitem__)
    assert rewards == pytest.approx([1, 2 / 3, 1 / 3]) and logged == {"exact_match": pytest.approx(1 / 3)}
