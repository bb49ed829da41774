"""Human preference: choices are stored and read again, and a reward that is fitted to them says what people like."""

import json
import logging
import math
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scripts.train import make_trainer
from tiny import text_dataset, text_processor, tiny_images, tiny_model

from vision_rl import VisionRewardConfig, VisionRewardTrainer, pipeline
from vision_rl.manifest import DamagedFolder
from vision_rl.preferences import (
    Choice,
    ChoiceFile,
    Comparison,
    Pair,
    PreferenceReward,
    comparison_page,
    fit_preference_reward,
    wilson,
)
from vision_rl.processing import VisionProcessor
from vision_rl.tasks.colorization import color_features


def plain(red: int, green: int, blue: int, size: int = 4) -> Image.Image:
    return Image.new("RGB", (size, size), (red, green, blue))


def pairs_of_texts(count: int = 4) -> list[Pair]:
    images = tiny_images(count)
    return [Pair(f"image {n}", images[n], (f"a{n}", f"b{n}"), ("mle", "tuned")) for n in range(count)]


def lengths(completions, **columns):
    return {
        "letters": [len(text) for text in completions],
        "vowels": [sum(c in "aeiou" for c in t) for t in completions],
    }


def choices_by(preferred, count: int = 60, seed: int = 0) -> list[Choice]:
    """Choices between two random words: the better one has the larger `preferred(word)`."""
    rng, image, choices = np.random.default_rng(seed), plain(0, 0, 0), []
    for number in range(count):
        words = tuple("".join(rng.choice(list("abcde"), rng.integers(1, 9))) for _ in range(2))
        better = int(preferred(words[1]) > preferred(words[0]))
        choices.append(Choice(Pair(str(number), image, words), better))
    return choices


# --- the file of choices --------------------------------------------------------------------------------------------


ANSWERS = [
    "a cat; <script>alert(1)</script>\n\u2028\x00",
    {"boxes": np.array([[1.5, 2.0, 3.0, 4.0]], np.float32), "labels": np.array([3]), "scores": np.array([0.25])},
    {"segmentation": np.arange(12, dtype=np.int32).reshape(3, 4), "segments_info": [{"id": 1, "isthing": True}]},
    plain(1, 2, 3),
    None,
    [1, 2.5, "x", [None]],
]


def same(one, other) -> bool:
    if isinstance(one, Image.Image):
        return isinstance(other, Image.Image) and np.array_equal(np.asarray(one), np.asarray(other))
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("answer", ANSWERS, ids=["text", "boxes", "map", "picture", "none", "list"])
def test_what_was_shown_is_read_again_for_the_answers_of_every_task(tmp_path, answer):
    file, image = ChoiceFile(tmp_path / "deep" / "choices.jsonl"), tiny_images(1)[0]
    file.append(Choice(Pair("7", image, (answer, "other"), ("mle", "tuned")), 1, (1, 0), "Ann"))
    (choice,) = file.read()
    assert same(choice.pair.completions, (answer, "other")) and same(choice.pair.image, image)
    assert (choice.pair.image_id, choice.pair.models) == ("7", ("mle", "tuned"))
    assert (choice.better, choice.order, choice.rater) == (1, (1, 0), "Ann") and choice.time.endswith("+00:00")
    assert len(file.path.read_bytes().splitlines()) == 1


json_answers = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(answers=st.tuples(json_answers, json_answers), rater=st.text(max_size=20))
@settings(max_examples=30, deadline=None)
def test_any_json_is_kept_as_it_is_in_one_line(tmp_path_factory, answers, rater):
    file = ChoiceFile(tmp_path_factory.mktemp("any") / "choices.jsonl")
    file.append(Choice(Pair("x", plain(0, 0, 0), answers), 0, rater=rater))
    file.append(Choice(Pair("x", plain(0, 0, 0), answers), None, rater=rater))
    first, second = file.read()
    assert first.pair.completions == answers and first.rater == rater and second.better is None


def test_the_same_picture_is_written_once_and_without_its_exif(tmp_path):
    file, exif = ChoiceFile(tmp_path / "c.jsonl"), Image.Exif()
    exif[0x010E] = "taken at home"
    plain(9, 9, 9).save(tmp_path / "photo.jpg", exif=exif)
    for _ in range(2):
        file.append(Choice(Pair("0", tmp_path / "photo.jpg", (plain(1, 1, 1), plain(1, 1, 1))), 0))
    stored = list(file.folder.iterdir())
    assert len(stored) == 2 and not any(b"taken at home" in path.read_bytes() for path in stored)


@pytest.mark.parametrize("answer", [object(), {1: "a"}, {"$file": "x"}, np.array(["a"]), b"bytes", {"a": {1, 2}}])
def test_an_answer_that_cannot_be_kept_is_refused_before_a_line_is_written(tmp_path, answer):
    file = ChoiceFile(tmp_path / "c.jsonl")
    with pytest.raises(TypeError, match="An answer holds a"):
        file.append(Choice(Pair("0", plain(0, 0, 0), (answer, "b")), 0))
    with pytest.raises(ValueError, match="JSON"):
        file.append(Choice(Pair("0", plain(0, 0, 0), (math.nan, "b")), 0))
    assert not file.path.exists()


def test_choices_that_are_none_are_refused(tmp_path):
    file, (pair, *_) = ChoiceFile(tmp_path / "c.jsonl"), pairs_of_texts()
    for better, order in ((2, (0, 1)), (0, (0, 0)), (-1, (0, 1))):
        with pytest.raises(ValueError, match="better must be 0, 1 or None"):
            file.append(Choice(pair, better, order))
    with pytest.raises(IsADirectoryError, match="is a folder: name a file in it"):
        ChoiceFile(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no file of choices"):
        file.read()


DAMAGED = [
    b'{"image_id": "0", "image": {"$file": ',
    b"\xff\xfe",
    b"[]",
    b"null",
    b'{"image_id": "0"}',
    b"[" * 100_000,
    b"9" * 10_000,
]


@pytest.mark.parametrize("line", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_line_is_named_and_can_be_left_out_and_nothing_else_is_lost(tmp_path, caplog, line):
    file, pairs = ChoiceFile(tmp_path / "c.jsonl"), pairs_of_texts()
    file.append(Choice(pairs[0], 0))
    with open(file.path, "ab") as stream:
        stream.write(line)  # without an end of line, as after a loss of power
    file.append(Choice(pairs[1], 1))
    with pytest.raises(
        ValueError, match=r"1 of 3 lines are not choices; the first: line 2 (?s:.*)on_bad_row=\"skip\""
    ):
        file.read()
    with caplog.at_level(logging.WARNING):
        assert [choice.pair.image_id for choice in file.read("skip")] == ["image 0", "image 1"]
    assert "left out" in caplog.text
    assert file.judged_by("") == {file.key(pairs[0]), file.key(pairs[1])}


CHANGES = {
    "better": [2, "0", True, 0.0, [0]],
    "order": [[0, 0], [1], "01", None],
    "image": ["a.png", None, {"$file": "../../../etc/passwd"}, {"$file": "/etc/passwd"}, {"$file": 7}, {}, {"a": 1}],
    "completions": [["a"], None, ["a", {"$file": "..\\secret.png"}], ["a", {"$file": "x.png", "b": 1}]],
    "models": [[1, 2], ["a"]],
    "rater": [None, 7],
    "time": [None],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in CHANGES.items() for value in values])
def test_a_line_with_other_values_than_a_choice_has_is_refused(tmp_path, name, value):
    file = ChoiceFile(tmp_path / "c.jsonl")
    file.append(Choice(pairs_of_texts()[0], 0))
    line = json.loads(file.path.read_text())
    file.path.write_text(json.dumps({**line, name: value}) + "\n")
    with pytest.raises(ValueError, match="line 1"):
        file.read()


def test_files_that_are_gone_or_altered_are_named(tmp_path):
    file, answers = ChoiceFile(tmp_path / "c.jsonl"), (plain(1, 1, 1), {"map": np.arange(3)})
    file.append(Choice(Pair("0", plain(0, 0, 0), answers), 0))
    (array,) = file.folder.glob("*.npy")
    np.save(array, np.arange(4))
    with pytest.raises(ValueError, match=r"npy does not have the content that was shown \(SHA-256\)"):
        list(file.read())
    np.save(array, np.array([print], object), allow_pickle=True)
    with pytest.raises(ValueError, match="npy cannot be read"):
        list(file.read())
    array.unlink()
    with pytest.raises(FileNotFoundError, match=r"line 1, .*\.npy"):
        file.read()
    assert list(file.read("skip")) == [] and file.judged_by("") == set()


def test_many_may_append_at_once(tmp_path):
    pairs = pairs_of_texts(8)

    def judge(rater: int):
        for pair in pairs:
            ChoiceFile(tmp_path / "c.jsonl").append(Choice(pair, rater % 2, rater=str(rater)))

    threads = [threading.Thread(target=judge, args=(rater,)) for rater in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(ChoiceFile(tmp_path / "c.jsonl").read())) == 32


# --- the way through the pairs --------------------------------------------------------------------------------------


def comparison(tmp_path, pairs=None, seed=0) -> Comparison:
    return Comparison(pairs or pairs_of_texts(), ChoiceFile(tmp_path / "c.jsonl"), VisionProcessor().draw, seed)


def test_a_rater_goes_on_where_the_last_choice_was_made_and_another_begins_at_the_first(tmp_path):
    one = comparison(tmp_path)
    for expected in range(2):
        shown = one.next("Ann")
        assert shown.place == expected
        one.choose(shown, 0, "Ann")
    again = comparison(tmp_path)  # the page was closed
    assert again.next("Ann").place == 2 and again.next("Bob").place == 0
    assert (again.num_judged("Ann"), again.num_judged("Bob")) == (2, 0)


@pytest.mark.parametrize("side", [0, 1, None])
def test_what_is_kept_is_the_answer_that_was_on_the_chosen_side(tmp_path, side):
    one = comparison(tmp_path, pairs_of_texts(20))
    orders = []
    while (shown := one.next("")) is not None:
        one.choose(shown, side, "")
        orders.append(shown.order)
    choices = list(one.choices.read())
    assert [choice.order for choice in choices] == orders and len(set(orders)) == 2
    for choice in choices:
        assert choice.better == (None if side is None else choice.order[side])


def test_the_pictures_stand_in_the_order_that_is_kept(tmp_path):
    pair = Pair("0", plain(0, 0, 0), ("first", "second"))
    one = Comparison([pair], ChoiceFile(tmp_path / "c.jsonl"), lambda image, completion: completion)
    shown = one.next("")
    assert one.pictures(shown) == tuple(pair.completions[which] for which in shown.order)


def test_a_second_click_on_a_pair_that_is_judged_keeps_nothing(tmp_path):
    one = comparison(tmp_path)
    shown = one.next("")
    one.choose(shown, 0, "")
    one.choose(shown, 1, "")
    assert len(list(one.choices.read())) == 1


def test_a_pipeline_draws_the_same_samples_for_a_seed_in_batches_of_any_size(tmp_path):
    make_trainer("mle", tmp_path).save_model()
    images = tiny_images(5)
    drawn = [pipeline(tmp_path, "ocr", batch_size, use_cpu=True).sample(images, 4, seed=3) for batch_size in (2, 16)]
    assert drawn[0] == drawn[1] and [len(answers) for answers in drawn[0]] == [4] * 5
    again = pipeline(tmp_path, "ocr", use_cpu=True)
    assert again.sample(images, 4, seed=4) != drawn[0] and again.sample([], 4) == []


def test_a_pipeline_changes_neither_the_precision_of_a_trainer_nor_the_seeds_of_the_process(tmp_path):
    trainer = make_trainer("reward", tmp_path / "tuned", bf16=True)
    trainer.save_model()
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    pipeline(tmp_path / "tuned", "ocr", use_cpu=True)(tiny_images(1))
    assert torch.equal(torch.rand(1), expected)
    assert trainer.accelerator.mixed_precision == "bf16"
    with trainer.accelerator.autocast():
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16 and torch.is_autocast_enabled("cpu")


def test_no_pairs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="There are no pairs"):
        Comparison([], ChoiceFile(tmp_path / "c.jsonl"), VisionProcessor().draw)


# --- the fit --------------------------------------------------------------------------------------------------------


def test_the_weights_are_those_of_bradley_and_terry_by_hand():
    """One feature that differs by 1, n choices for the larger and m for the smaller: with hardly a prior, ln(n / m)."""
    image = plain(0, 0, 0)
    choices = [Choice(Pair(str(n), image, ("aa", "a")), int(n >= 45)) for n in range(60)]
    reward = fit_preference_reward(choices, lambda completions, **_: {"letters": list(map(len, completions))}, l2=1e-6)
    long, short = reward(["aa", "a"])
    assert long - short == pytest.approx(math.log(45 / 15), abs=1e-3)
    assert reward.agreement.accuracy == pytest.approx(45 / 60)


def test_a_reward_foretells_choices_that_it_was_not_fitted_to_and_says_what_they_are_for():
    reward = fit_preference_reward(choices_by(lambda word: sum(c in "aeiou" for c in word)), lengths)
    assert reward.fitted["vowels"].weight > 3 * abs(reward.fitted["letters"].weight)
    assert reward.agreement.accuracy > 0.75 and reward.agreement.num_choices == 60
    others = choices_by(lambda word: sum(c in "aeiou" for c in word) + 0.01 * len(word), 300, seed=1)
    right = [np.argmax(reward(list(choice.pair.completions))) == choice.better for choice in others]
    assert np.mean(right) > 0.75


def test_choices_that_mean_nothing_are_foretold_by_half_and_warned_of(caplog):
    rng = np.random.default_rng(0)
    with caplog.at_level(logging.WARNING):
        reward = fit_preference_reward(choices_by(lambda word: rng.random(), 400), lengths)
    assert reward.agreement.interval[0] < 0.5 < reward.agreement.interval[1]
    assert "no better than tossing a coin" in caplog.text


def test_choices_on_one_image_are_left_out_together():
    """The choice on each image is random. Only a fit that has seen choices on the image could predict it."""
    rng, choices = np.random.default_rng(0), []
    for image in range(30):
        better = int(rng.integers(2))
        choices += [Choice(Pair(str(image), plain(0, 0, 0), (f"{image} a", f"{image} b")), better)] * 4

    def of_the_image(completions, **columns):
        return {f"{image} a": [float(text == f"{image} a") for text in completions] for image in range(30)}

    accuracy = fit_preference_reward(choices, of_the_image).agreement.accuracy
    assert accuracy == 0.5  # without choices on the image both rewards are equal


def test_features_see_the_image_too():
    images = [plain(200 * (n % 2), 0, 0) for n in range(40)]
    choices = [Choice(Pair(str(n), images[n], ("red", "black")), 1 - n % 2) for n in range(40)]

    def names_the_colour(completions, image, **columns):
        return {
            "right": [
                (text == "red") == (one.getpixel((0, 0))[0] > 0) for text, one in zip(completions, image, strict=True)
            ]
        }

    assert fit_preference_reward(choices, names_the_colour).agreement.accuracy == 1


def test_an_answer_beyond_all_that_was_compared_earns_no_more_and_is_told():
    reward = fit_preference_reward(choices_by(len), lengths)
    logged = {}
    at_the_end, beyond = reward(["bbbbbbbb", "b" * 100], log_metric=logged.__setitem__)
    assert beyond == at_the_end and logged == {"beyond_choices": 0.5}


@pytest.mark.parametrize(
    ("choices", "features", "what"),
    [
        (choices_by(len, 29), lengths, "There are 29 choices on 29 images, .*judge more pairs"),
        ([Choice(Pair("0", plain(0, 0, 0), ("a", "bb")), 1)] * 50, lengths, "There are 50 choices on 1 images"),
        ([], lengths, "There are 0 choices"),
        (
            choices_by(len),
            lambda completions, **_: {"one": [1.0] * len(completions)},
            "The two answers are equal in all features",
        ),
        (choices_by(len), lambda completions, **_: {"nan": [math.nan, 1.0]}, "The feature 'nan' must have a finite"),
        (choices_by(len), lambda completions, **_: {"short": [1.0]}, "The feature 'short' must have a finite"),
        (choices_by(len), lambda completions, **_: {"text": completions}, "The feature 'text' must have a finite"),
        (choices_by(len), lambda completions, **_: [1.0, 2.0], "must return numbers by name"),
        (choices_by(len), lambda completions, **_: {}, "must return numbers by name"),
        (choices_by(len), lambda completions, **_: {completions[0]: [1, 2]}, "One answer has the features"),
    ],
)
def test_what_cannot_be_fitted_is_refused(choices, features, what):
    with pytest.raises(ValueError, match=what):
        fit_preference_reward(choices, features)


def test_undecided_choices_are_counted_and_not_fitted():
    undecided = [Choice(Pair("x", plain(0, 0, 0), ("a", "b")), None)] * 5
    reward = fit_preference_reward(choices_by(len) + undecided, lengths)
    assert (reward.agreement.num_choices, reward.agreement.num_undecided) == (60, 5)
    with pytest.raises(ValueError, match="besides 5 of neither"):
        fit_preference_reward(undecided, lengths)


def test_wilsons_interval_by_hand():
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)  # 1.96^2 / (10 + 1.96^2)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_equal_features_on_both_sides_change_nothing():
    """A feature that never differs within a pair, such as one of the image, gets no weight."""

    def with_constant(completions, **columns):
        return {**lengths(completions), "constant": [7.0] * len(completions)}

    choices = choices_by(len)
    plain_fit, other = fit_preference_reward(choices, lengths), fit_preference_reward(choices, with_constant)
    assert other.fitted["constant"].weight == 0
    assert other(["abc", "d"]) == pytest.approx(plain_fit(["abc", "d"]), abs=1e-4)


# --- the reward beside the model ------------------------------------------------------------------------------------


def test_a_reward_is_saved_and_loaded_and_pays_the_same(tmp_path):
    reward = fit_preference_reward(choices_by(len), lengths)
    reward.save_pretrained(tmp_path)
    loaded = PreferenceReward.from_pretrained(tmp_path, lengths)
    assert loaded(["abc", "e", ""]) == reward(["abc", "e", ""]) and loaded.agreement == reward.agreement
    with pytest.raises(ValueError, match=r"The features are words, but the reward was fitted to letters, vowels"):
        PreferenceReward.from_pretrained(tmp_path, lambda completions, **_: {"words": [1.0]})(["a"])
    with pytest.raises(FileNotFoundError, match="no PreferenceReward was saved there"):
        PreferenceReward.from_pretrained(tmp_path / "elsewhere", lengths)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:40],
        lambda text: text.replace('"scale": ', '"scale": -'),
        lambda text: text.replace('"weight": ', '"weight": NaN, "x": '),
        lambda text: text.replace('"features"', '"feature"'),
        lambda text: json.dumps({**json.loads(text), "features": {}}),
        lambda text: "[]",
    ],
)
def test_a_damaged_reward_is_not_loaded(tmp_path, damage):
    fit_preference_reward(choices_by(len), lengths).save_pretrained(tmp_path)
    path = tmp_path / "reward" / "preference" / "config.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(DamagedFolder, match="preference"):
        PreferenceReward.from_pretrained(tmp_path, lengths)


def test_a_model_is_tuned_for_it_and_it_is_saved_beside_the_model(tmp_path):
    """The rater likes long words. The trainer takes the fitted reward like any other, and the words become longer."""
    reward = fit_preference_reward(choices_by(len), lengths)
    config = VisionRewardConfig(
        str(tmp_path),
        max_steps=30,
        learning_rate=1e-2,
        max_completion_length=6,
        use_cpu=True,
        report_to="none",
        logging_steps=1,
    )
    data = {"train_dataset": text_dataset(16), "eval_dataset": text_dataset(16), "processing_class": text_processor()}
    trainer = VisionRewardTrainer(tiny_model(sharp=0.2, seed=2), reward, config, **data)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    key = "eval_rewards/PreferenceReward/mean"
    assert after[key] > before[key] + 0.5
    assert any("beyond_choices" in name for log in trainer.state.log_history for name in log)
    trainer.save_model()
    assert PreferenceReward.from_pretrained(tmp_path, lengths).fitted == reward.fitted
    assert "PreferenceReward" in (tmp_path / "reward" / "rewards.json").read_text()


# --- the features of colour -----------------------------------------------------------------------------------------


def test_the_features_of_plain_colours_by_hand():
    found = color_features([plain(128, 128, 128), plain(255, 0, 0)])
    assert found["a"] == pytest.approx([0, 80.1], abs=0.1)  # CIELAB of sRGB's grey and red
    assert found["b"] == pytest.approx([0, 67.2], abs=0.1)
    assert found["chroma"] == pytest.approx([0, math.hypot(80.1, 67.2)], abs=0.1)
    assert found["a_squared"] == [a * a for a in found["a"]]
    assert found["chroma_spread"] == pytest.approx([0, 0], abs=1e-6) == found["patchiness"]


@pytest.mark.parametrize(
    ("hue", "colour"),
    [
        ("red", (230, 40, 90)),
        ("yellow", (230, 200, 40)),
        ("green", (40, 200, 60)),
        ("cyan", (40, 190, 200)),
        ("blue", (60, 110, 230)),
        ("magenta", (200, 60, 200)),
    ],
)
def test_a_colour_has_the_hue_that_people_call_it(hue, colour):
    features = color_features([plain(*colour)])
    assert features[hue] == [pytest.approx(1)]


def test_a_chequered_picture_is_patchy_and_a_halved_one_is_not():
    board = np.indices((8, 8)).sum(0) % 2
    pictures = [
        np.where(mask[..., None], (200, 40, 40), (40, 40, 200)).astype(np.uint8)
        for mask in (board, np.indices((8, 8))[1] > 3)
    ]
    chequered, halved = color_features(pictures)["patchiness"]
    assert chequered > 5 * halved > 0


def test_features_are_the_same_for_pictures_arrays_and_tensors_and_for_no_picture():
    picture = tiny_images(1)[0]
    one, two, three = (
        color_features([form])["a"] for form in (picture, np.asarray(picture), torch.tensor(np.asarray(picture)))
    )
    assert one == two == three
    assert all(values == [] for values in color_features([]).values())


# --- the page -------------------------------------------------------------------------------------------------------


def test_without_gradio_the_page_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['gradio'] = None\n"
        "from vision_rl.preferences import ChoiceFile, Pair, comparison_page\n"
        "from PIL import Image\n"
        f"pairs = [Pair('0', Image.new('RGB', (2, 2)), ('a', 'b'))]\n"
        f"comparison_page(pairs, ChoiceFile({str(tmp_path / 'c.jsonl')!r}), print)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'pip install "vision-rl[app]"' in done.stderr and done.returncode == 1


@pytest.fixture
def gradio(monkeypatch):
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    return pytest.importorskip("gradio", reason="the extra `app` is not installed")


def served(page):
    """The page on a free port, and a client that talks to it like a browser."""
    from gradio_client import Client

    _, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, share=False)
    return Client(url, verbose=False)


def test_on_the_page_two_answers_are_judged_and_hostile_texts_stay_texts(tmp_path, gradio):
    hostile = "<script>alert(1)</script>[x](javascript:alert(1))"
    pairs = [Pair(hostile, tiny_images(1)[0], (hostile, f"{hostile} {n}"), (hostile, hostile)) for n in range(2)]
    choices = ChoiceFile(tmp_path / "c.jsonl")
    page = comparison_page(pairs, choices, VisionProcessor().draw, question=hostile)
    assert "<script>" not in str(page.get_config_file())
    client = served(page)
    try:
        first = client.predict("Ann", api_name="/show")
        assert [Image.open(path).format for path in first[:2]] == ["PNG", "PNG"] and "0 of 2" in first[2]
        assert "1 of 2" in client.predict("Ann", api_name="/chosen")[2]
        last = client.predict("Ann", api_name="/chosen_2")
        assert "2 of 2 judged. That was the last one" in last[2] and last[0] is None
        client.predict("Ann", api_name="/chosen")  # no pair is left to choose from
    finally:
        page.close()
    said = list(choices.read())
    assert [choice.rater for choice in said] == ["Ann", "Ann"]
    assert said[0].better == said[0].order[0] and said[1].better == said[1].order[1]


def test_the_example_answers_with_both_models_and_says_what_it_cannot_read(tmp_path, gradio):
    examples = Path(__file__).parents[1] / "examples"
    if not examples.is_dir():
        pytest.skip("the examples are not part of the installed package")
    sys.path.insert(0, str(examples))
    try:
        import app
    finally:
        sys.path.remove(str(examples))
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    trainer = make_trainer("mle", tmp_path / "model")
    trainer.save_model()
    tiny_images(1)[0].save(tmp_path / "image.png")
    (tmp_path / "broken.png").write_bytes(b"<b>no picture</b>")
    page = app.make_page(app.ScriptArguments(str(tmp_path / "model"), str(tmp_path / "model"), task="ocr"))
    client = served(page)
    try:
        answers = client.predict(handle_file(tmp_path / "image.png"), api_name="/answer")
        assert [Image.open(path).width for path in answers] == [512, 512]
        with pytest.raises(AppError, match="The image of row 0 .* cannot be read"):
            client.predict(handle_file(tmp_path / "broken.png"), api_name="/answer")
    finally:
        page.close()
