"""The values in rows are checked before training: errors name the first wrong row and how many there are."""

import logging

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import END, START, image_processor, share_of_a, text_dataset, text_processor, tiny_images, tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer
from vision_rl.processing import TextProcessor
from vision_rl.tasks.captioning import CaptioningProcessor
from vision_rl.tasks.detection import DetectionProcessor, coco_map
from vision_rl.tasks.detection.objects import read_column, read_objects
from vision_rl.tasks.ocr import exact_match_reward
from vision_rl.tasks.panoptic import PanopticProcessor


COLUMNS = {"image": "image", "objects": "objects"}
BOXES = [[1, 2, 3, 4], [4, 4, 4, 4]]


def detector(**options) -> DetectionProcessor:
    return DetectionProcessor(image_processor(), ["x", "y"], num_bins=100, max_boxes=3, **options)


def rows_of(*objects, size=(64, 48)) -> list[dict]:
    return [{"image": Image.new("RGB", size), "objects": one} for one in objects]


def mle(tmp_path, dataset, processor=None, model=None, **kwargs):
    args = {"per_device_train_batch_size": 4, "max_steps": 1, "report_to": "none", "use_cpu": True, **kwargs}
    args = VisionMLEConfig(str(tmp_path), save_strategy="no", disable_tqdm=True, **args)
    processor = processor or text_processor()
    return VisionMLETrainer(model or tiny_model(), args, train_dataset=dataset, processing_class=processor)


@pytest.mark.parametrize("format", [None, "numpy", "torch"])
def test_a_missing_crowd_flag_is_none_in_every_format(format):
    objects = [{"bbox": BOXES, "category": [0, 1], "iscrowd": [1, None]}]
    dataset = Dataset.from_list([{"objects": one} for one in objects]).with_format(format)
    assert read_objects(dataset[0]["objects"], ["x", "y"]).iscrowd.tolist() == [True, False]


# --- objects --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objects", "count"),
    [
        (None, 0),
        ([], 0),
        ({"bbox": None, "category": None}, 0),
        ({"bbox": [], "category": []}, 0),
        ([{"bbox": BOXES[0], "category": 0, "area": 3.0}, {"bbox": BOXES[1], "category": 1}], 2),
        ([{"bbox": BOXES[0], "category": 0}, {"bbox": BOXES[1], "category": 1, "iscrowd": None}], 2),
        ({"bbox": np.array(BOXES), "category": np.array([0, 1]), "area": np.array([12.0, 16.0])}, 2),
        ({"bbox": torch.tensor(BOXES), "category": torch.tensor([0, 1]), "iscrowd": torch.tensor([0, 0])}, 2),
        ({"bbox": [torch.tensor(box) for box in BOXES], "category": [torch.tensor(0), np.int64(1)]}, 2),
        ({"bbox": BOXES, "category": [0, 1], "area": [12.0, None]}, 2),
        ({"bbox": BOXES, "category": [0.0, 1.0], "area": [np.nan, 16.0]}, 2),
        ({"bbox": BOXES, "category": [0, 1], "iscrowd": np.array([0, 0]), "area": None}, 2),
        ({"bbox": BOXES, "category": ["x", "y"], "iscrowd": [False, None]}, 2),
        *[({"bbox": BOXES, name: [0, 1]}, 2) for name in ("categories", "label", "labels", "category_id")],
    ],
)
def test_objects_in_any_usual_form_are_checked_learned_and_measured(objects, count):
    p, rows = detector(), rows_of(objects)
    p.check_dataset(rows, COLUMNS)
    (reference,) = p.get_references(rows)
    assert reference["area"].tolist() == [12.0, 16.0][:count] or reference["area"].tolist() == [3.0, 16.0]
    labels = p(images=[rows[0]["image"]], objects=[objects])["labels"]
    assert (labels[0, 5::6] > 0).sum() == count
    if count:
        scored = {**reference, "scores": np.ones(count)}
        assert coco_map([scored], [reference])["map"] == pytest.approx(1)


WRONG = {
    "The category of object 1 is missing: it is None": {"bbox": BOXES, "category": [0, None]},
    "The category of object 0 is missing: it is nan": {"bbox": BOXES, "category": [float("nan"), 1]},
    "The category of object 0 is 0.5; it must be a name, or the place": {"bbox": BOXES, "category": [0.5, 1]},
    "The category of object 0 is True": {"bbox": BOXES, "category": [True, 1]},
    "The category 'z' is not one of": {"bbox": BOXES, "category": ["x", "z"]},
    "The category 2 is out of range: there are 2": {"bbox": BOXES, "category": [0, 2]},
    "`category` is None; it must be a list": {"bbox": BOXES, "category": None},
    "0 boxes in `bbox`, but 1 categories": {"bbox": None, "category": [0]},
    "2 boxes in `bbox`, but 1 entries in `area`": {"bbox": BOXES, "category": [0, 1], "area": [3.0]},
    "2 boxes in `bbox`, but 3 entries in `iscrowd`": {"bbox": BOXES, "category": [0, 1], "iscrowd": [0, 0, 0]},
    "`area` of object 1 has '16'": {"bbox": BOXES, "category": [0, 1], "area": [3.0, "16"]},
    "`area` of object 1 is -1.0": {"bbox": BOXES, "category": [0, 1], "area": [3.0, -1.0]},
    "`area` is 7.0; it must be a list": {"bbox": BOXES, "category": [0, 1], "area": 7.0},
    "`iscrowd` of object 0 is 'false'; it must be 0 or 1": {
        "bbox": BOXES,
        "category": [0, 1],
        "iscrowd": ["false", 0],
    },
    "`iscrowd` of object 1 is 2": {"bbox": BOXES, "category": [0, 1], "iscrowd": [0, 2]},
    "Box 0 in `bbox` is \\[\\[10, 20\\], \\[30, 60\\]\\].*It has points": {
        "bbox": [[[10, 20], [30, 60]]],
        "category": [0],
    },
    "Box 0 in `bbox` is \\[\\[1, 2\\], \\[3, 4\\], \\[5, 6\\]\\].*It has points": {
        "bbox": [[[1, 2], [3, 4], [5, 6]]],
        "category": [0],
    },
    "Box 0 in `bbox` is \\[1, 2, 3, 4, 5\\]; it must be four numbers": {"bbox": [[1, 2, 3, 4, 5]], "category": [0]},
    "Box 1 in `bbox` is \\[4, 4, 4\\]": {"bbox": [BOXES[0], [4, 4, 4]], "category": [0, 1]},
    "Box 0 in `bbox` is 1; it must be four numbers": {"bbox": [1, 2, 3, 4], "category": [0]},
    "Box 0 in `bbox` has '1', which is not a number": {"bbox": [["1", "2", "3", "4"]], "category": [0]},
    "Box 0 in `bbox` is '1 2 3 4'": {"bbox": ["1 2 3 4"], "category": [0]},
    "`bbox` is '1,2,3,4'; it must be a list": {"bbox": "1,2,3,4", "category": [0]},
    "Box 0 in `bbox` is {'x': 1": {"bbox": [{"x": 1, "y": 2, "w": 3, "h": 4}], "category": [0]},
    "1 of 2 boxes in `bbox` are NaN or infinite": {"bbox": [BOXES[0], [1, None, 2, 3]], "category": [0, 1]},
    "The objects have \\['boxes', 'category'\\]; they need `bbox`": {"boxes": BOXES, "category": [0, 1]},
    "Object 1 is None; it must be a dict": [{"bbox": BOXES[0], "category": 0}, None],
    "The objects are the str": '{"bbox": [], "category": []}',
}


@pytest.mark.parametrize("told", WRONG)
def test_what_is_wrong_is_told_with_row_field_and_how_many(told):
    good = {"bbox": BOXES, "category": [0, 1]}
    with pytest.raises(ValueError, match=f"Row 1, column `objects`: .*{told}.*\\(2 of 4 rows cannot be used.\\)"):
        detector().check_dataset(rows_of(good, WRONG[told], good, WRONG[told]), COLUMNS)


def arrow(objects: list) -> Dataset:
    return Dataset.from_dict({"objects": objects})


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_column_is_read_as_its_rows_are(data):
    """Reading a whole column, in any Arrow form, gives and refuses what reading its rows one by one does."""
    number = st.one_of(st.floats(-5, 50, allow_nan=False), st.none() if data.draw(st.booleans()) else st.nothing())
    category = data.draw(st.sampled_from([st.integers(0, 1), st.sampled_from(["x", "y"]), st.integers(-1, 2)]))
    fields = {"category": category}
    if data.draw(st.booleans()):
        fields["area"] = st.one_of(st.floats(0, 9), st.none())
    if data.draw(st.booleans()):
        fields["iscrowd"] = data.draw(st.sampled_from([st.integers(0, 1), st.booleans(), st.integers(0, 2)]))
    box = st.lists(number, min_size=4, max_size=data.draw(st.sampled_from([4, 4, 5])))
    one = st.fixed_dictionaries({"bbox": box, **fields})
    rows = data.draw(st.lists(st.lists(one, max_size=3), min_size=1, max_size=5))
    if data.draw(st.booleans()):
        rows = [{name: [one[name] for one in row] for name in ("bbox", *fields)} for row in rows]
    if data.draw(st.booleans()):
        rows = [*rows, None]
    dataset, names = arrow(rows), ["x", "y"]
    try:
        parts = [read_objects(dataset[i]["objects"], names, i) for i in range(len(dataset))]
    except ValueError:
        with pytest.raises(ValueError, match="rows cannot be used"):
            read_column(dataset, "objects", names)
        return
    found = read_column(dataset, "objects", names)
    order = np.argsort(found.rows, kind="stable")
    for name in ("boxes", "labels", "area", "iscrowd", "rows"):
        expected = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(getattr(found, name)[order], expected)


def test_a_hundred_thousand_rows_are_counted_by_their_columns():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 8, 100_000)
    boxes = rng.random((counts.sum(), 4)) * 30 + 1
    ends = np.cumsum(counts)
    objects = {"bbox": List(List(Value("float64"))), "category": List(ClassLabel(names=["x", "y"]))}
    dataset = Dataset.from_dict(
        {
            "objects": [
                {"bbox": boxes[end - n : end].tolist(), "category": [0] * n}
                for end, n in zip(ends, counts, strict=True)
            ]
        },
        features=Features({"objects": objects}),
    )
    assert detector().count_classes(dataset) == [counts.sum(), 0]


def test_formatted_rows_are_rows(tmp_path):
    dataset = arrow([{"bbox": BOXES, "category": [0, 1]}] * 3).add_column("image", [0] * 3)
    for form in ("numpy", "torch", None):
        row = dataset.with_format(form)[0]
        assert read_objects(row["objects"], ["x", "y"]).boxes.tolist() == BOXES


# --- units and forms of boxes ---------------------------------------------------------------------------------------


def many_boxes(form: str, size=(640, 480), count: int = 40, part: float = 1.0) -> list[dict]:
    """Rows with random boxes in the upper left `part` of their image, written in the given form."""
    rng, rows = np.random.default_rng(0), []
    side = np.array(size) * part
    for _ in range(count):
        low, high = np.sort(rng.random((2, 2)) * side, axis=0)
        high = np.maximum(high, low + 8).clip(max=side)
        low = np.minimum(low, high - 8)
        extent, whole = high - low, np.array(size)
        box = {
            "xywh": [*low, *extent],
            "xyxy": [*low, *high],
            "yxyx": [*low[::-1], *high[::-1]],
            "cxcywh": [*(low + extent / 2), *extent],
            "shares": [*low / whole, *extent / whole],
            "shares, xyxy": [*low / whole, *high / whole],
            "shares, cxcywh": [*(low + extent / 2) / whole, *extent / whole],
            "percent": [*100 * low / whole, *100 * extent / whole],
            "percent, xyxy": [*100 * low / whole, *100 * high / whole],
            "thousandths, xyxy": [*1000 * low / whole, *1000 * high / whole],
        }[form]
        rows += rows_of({"bbox": [[float(value) for value in box]], "category": [0]}, size=size)
    return rows


@pytest.mark.parametrize(
    ("form", "part", "told"),
    [
        ("xyxy", 1.0, "are these x0, y0, x1, y1"),
        ("xyxy", 0.5, "are these x0, y0, x1, y1"),
        ("xyxy", 0.3, "are these x0, y0, x1, y1"),
        ("yxyx", 1.0, "are these x0, y0, x1, y1"),
        ("yxyx", 0.4, "are these x0, y0, x1, y1"),
        ("cxcywh", 1.0, "are these"),
        ("shares", 1.0, "are these shares of the image"),
        ("shares, xyxy", 1.0, "are these shares of the image"),
        ("shares, cxcywh", 0.5, "are these shares of the image"),
        ("percent", 1.0, "are these percent"),
        ("percent, xyxy", 1.0, "are these"),
        ("thousandths, xyxy", 1.0, "are these x0, y0, x1, y1"),
    ],
)
def test_boxes_of_another_unit_or_form_are_refused(form, part, told):
    rows = many_boxes(form, part=part)
    with pytest.raises(ValueError, match=f"boxes in column `objects` .*{told}.*trust_boxes=True"):
        detector().check_dataset(rows, COLUMNS)
    detector(trust_boxes=True).check_dataset(rows, COLUMNS)


@pytest.mark.parametrize("part", [1.0, 0.6])
def test_boxes_that_are_right_are_taken(part):
    detector().check_dataset(many_boxes("xywh", part=part), COLUMNS)


def test_large_objects_are_not_taken_for_corners():
    rng = np.random.default_rng(0)
    boxes = [
        [x, y, 640 - x - rng.integers(0, 50), 480 - y - rng.integers(0, 50)] for x, y in rng.integers(0, 90, (40, 2))
    ]
    rows = rows_of(*({"bbox": [list(map(float, box))], "category": [0]} for box in boxes), size=(640, 480))
    detector().check_dataset(rows, COLUMNS)


def test_boxes_smaller_than_a_pixel_are_counted(caplog):
    rows = rows_of({"bbox": [[0.1, 0.1, 0.2, 0.2], [5, 5, 20, 20]], "category": [0, 0]})
    with caplog.at_level(logging.WARNING):
        detector().check_dataset(rows, COLUMNS)
    assert "1 boxes are less than a pixel wide and high" in caplog.text


# --- texts ----------------------------------------------------------------------------------------------------------


def test_texts_that_are_missing_are_found_before_training(tmp_path):
    rows = text_dataset(64).map(lambda row, i: {"text": None if i in (40, 50) else row["text"]}, with_indices=True)
    with pytest.raises(ValueError, match=r"train_dataset: Row 40, column `text`: text must be .*\(2 of 64 rows"):
        mle(tmp_path, rows)


@pytest.mark.parametrize("text", ["a" * 20, "ab" * 8])
def test_texts_that_are_too_long_are_found_before_training(tmp_path, text):
    rows = [{"image": image, "text": text if i in (5, 6) else "ab"} for i, image in enumerate(tiny_images(8))]
    told = rf"Row 5, column `text`: the labels have {len(text) + 1} tokens, but the decoder has only 16 positions.*2 of 8 rows"
    with pytest.raises(ValueError, match=told):
        mle(tmp_path, rows)


def test_captions_that_are_too_long_are_found_where_they_are_not_cut():
    tokenizer = text_processor().tokenizer
    dataset = Dataset.from_dict({"captions": [["ab"], ["ab", "abcd" * 5]]})
    cut, whole = (CaptioningProcessor(image_processor(), tokenizer, max_caption_length=n) for n in (16, 64))
    cut.check_label_lengths(dataset, {"captions": "captions"}, 16)
    with pytest.raises(ValueError, match="Row 1, column `captions`: the labels have 21 tokens"):
        whole.check_label_lengths(dataset, {"captions": "captions"}, 16)


def donut_like(decoder=None) -> TextProcessor:
    """A processor like Donut's: tags are special tokens, and a task token starts the decoder."""
    kernel = Tokenizer(models.WordLevel({"<s>": 0, "<pad>": 1, "</s>": 2, "a": 3, "b": 4}))
    kernel.pre_tokenizer = pre_tokenizers.FixedLength(length=1)
    kernel.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    kernel.decoder = decoder
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=kernel, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<s_task>", "<s_menu>", "</s_menu>"]})
    start = tokenizer.convert_tokens_to_ids("<s_task>")
    return TextProcessor(image_processor(), tokenizer, decoder_start_token_id=start)


@pytest.mark.parametrize("text", ["<s_menu>ab</s_menu>", "<s_task><s_menu>ab</s_menu></s>", "<s_menu>ab</s_menu></s>"])
def test_tags_survive_and_start_and_end_are_not_doubled(text):
    p = donut_like(decoders.Fuse())
    labels = p(images=tiny_images(1), text=[text])["labels"][0].tolist()
    assert p.tokenizer.convert_ids_to_tokens(labels) == ["<s_menu>", "a", "b", "</s_menu>", "</s>"]
    said, true = p.batch_decode([labels]), p.get_references([{"text": text}])
    assert said == true == ["<s_menu>ab</s_menu>"] and exact_match_reward(said, true) == [1.0]


def test_what_generate_returns_is_read_with_its_start_and_padding():
    p = donut_like(decoders.Fuse())
    start = p.decoder_start_token_id
    assert p.batch_decode(torch.tensor([[start, 3, 4, 2, 1], [start, 3, 2, 1, 1]])) == ["ab", "a"]
    assert p.decode([start, 3, 2, -100]) == "a"
    assert p.batch_decode([[start, 3, 2]], skip_special_tokens=False) == ["<s_task>a</s>"]
    with pytest.raises(TypeError, match="image_sizes"):
        p.batch_decode([[3]], image_sizes=[(3, 3)])


def test_a_text_that_splits_special_tokens_keeps_what_looks_like_one():
    p = TextProcessor(image_processor(), text_processor("</s>ab").tokenizer, decoder_start_token_id=START)
    assert p.get_references([{"text": "ab</s>"}]) == ["ab</s>"]
    labels = p(images=tiny_images(1), text=["ab</s>"])["labels"][0].tolist()
    assert labels[-1] == END and p.batch_decode([labels]) == ["ab</s>"]


# --- labels read back -----------------------------------------------------------------------------------------------


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if "decoded to" in record.getMessage()]


def test_labels_that_are_not_decoded_to_their_text_are_told_with_both(tmp_path, caplog):
    model = tiny_model(vocab_size=8, end=2)
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id, config.pad_token_id = 5, 1
    rows = [{"image": image, "text": "<s_menu>ab</s_menu>" if i else "a"} for i, image in enumerate(tiny_images(4))]
    with caplog.at_level(logging.WARNING):
        mle(tmp_path, rows, donut_like(), model)  # without a decoder the tokenizer puts blanks between tokens
        (told,) = warnings_of(caplog)
        assert told.startswith(
            "train_dataset: the labels of 3 of the first 4 rows are not decoded to their references"
        )
        assert "Row 1 is decoded to '<s_menu> a b </s_menu>', but its reference is '<s_menu>ab</s_menu>'" in told
        caplog.clear()
        mle(tmp_path, rows, donut_like(decoders.Fuse()), model)
        assert warnings_of(caplog) == []


def test_a_reference_that_the_model_cannot_write_is_told_in_tuning(tmp_path, caplog):
    rows = [{"image": image, "text": "ab" if i else "x"} for i, image in enumerate(tiny_images(4))]
    args = VisionRewardConfig(str(tmp_path), per_device_train_batch_size=4, report_to="none", use_cpu=True)
    with caplog.at_level(logging.WARNING):
        VisionRewardTrainer(tiny_model(), share_of_a, args, train_dataset=rows, processing_class=text_processor())
    assert "train_dataset: the model cannot write a reference. TextProcessor cannot use row 0" in caplog.text


@pytest.mark.parametrize(("size", "told"), [((64, 48), False), ((2000, 2000), True)])
def test_boxes_that_the_bins_do_not_tell_apart_are_told(size, told):
    p = DetectionProcessor(image_processor(), ["x"], num_bins=10, max_boxes=3)
    rows = rows_of({"bbox": [[20.0, 12.0, 30.0, 30.0]], "category": [0]}, size=size)
    (reference,) = p.get_references(rows)
    labels = p(images=[rows[0]["image"]], objects=[rows[0]["objects"]])["labels"]
    (made,) = p.decode_completions(
        labels.tolist(),
        per_token_logps=torch.zeros(labels.shape),
        watched_logps=torch.zeros(*labels.shape, 2),
        image_sizes=[size],
    )
    assert p.says_the_same(made, reference) != told


def test_captions_are_compared_as_cider_reads_them():
    p = CaptioningProcessor(image_processor(), text_processor().tokenizer)
    assert p.says_the_same("a dog .", ["A dog.", "The dog"])
    assert not p.says_the_same("a [UNK] .", ["A dog.", "The dog"])


# --- segments and codes ---------------------------------------------------------------------------------------------


SEGMENT = {"id": 1, "category_id": 1}


@pytest.mark.parametrize(
    ("infos", "told"),
    [
        ([{"id": 1}], "`category_id` of segment 0 is None; it must be a whole number"),
        ([{"id": "1", "category_id": 1}], "`id` of segment 0 is '1'"),
        ([{**SEGMENT, "iscrowd": "false"}], "`iscrowd` of segment 0 is 'false'; it must be 0 or 1"),
        ([{**SEGMENT, "iscrowd": 3}], "`iscrowd` of segment 0 is 3"),
        ([None], "Segment 0 is None; it must be a dict"),
        ({"id": [1, 2], "category_id": [1]}, "The lists of segments_info must have the same length"),
        ([{"id": 1, "category_id": 9}], "1 segments have a category_id that is not among"),
    ],
)
@pytest.mark.parametrize("as_table", [False, True])
def test_segments_that_are_wrong_are_told_with_row_and_how_many(infos, told, as_table):
    p = PanopticProcessor(image_processor(), [{"id": 1, "name": "x", "isthing": 1}], max_instances=4)
    dataset = [{"segments_info": infos}] * 2
    if as_table:
        dataset = Dataset.from_list(dataset)
    with pytest.raises(ValueError, match=f"Row 0, column `segments_info`: {told}.*\\(2 of 2 rows cannot be used"):
        p._count_segments(dataset, "segments_info")


def test_segments_are_counted_over_whole_columns():
    p = PanopticProcessor(image_processor(), [{"id": 1, "name": "x", "isthing": 1}], max_instances=4)
    usual = [[{"id": i, "category_id": 1, "iscrowd": 0} for i in range(1, n + 1)] for n in (2, 0, 5)]
    for infos in (usual, [*usual, None], [{name: [s[name] for s in row] for name in SEGMENT} for row in usual]):
        counts = p._count_segments(Dataset.from_dict({"segments_info": infos}), "segments_info")
        assert sorted(counts) == sorted(
            len(row or []) if not isinstance(row, dict) else len(row["id"]) for row in infos
        )


@pytest.mark.parametrize("codes", [[1, 2, 99], [1, 2], None, [-1, 2, 3], [1.5, 2, 3]])
def test_codes_are_looked_at_in_every_row(codes):
    p = PanopticProcessor(image_processor(), [{"id": 1, "name": "x", "isthing": 1}], num_codes=16, code_len=3)
    good = [[1, 2, 3]] * 5
    p.check_codes(Dataset.from_dict({"codes": good}), "codes")
    for dataset in (Dataset.from_dict({"codes": [*good, codes]}), [{"codes": row} for row in [*good, codes]]):
        with pytest.raises(ValueError, match=r"Row .*, column `codes`: codes must be"):
            p.check_codes(dataset, "codes")


# --- metrics --------------------------------------------------------------------------------------------------------


def forgets_to_return(predictions, references):
    print(len(predictions))


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        (lambda eval_pred: {"n": 1}, r"compute_metrics takes \(eval_pred\); it must be compute_metrics\(predictions="),
        (lambda predictions: {"n": 1}, r"compute_metrics takes \(predictions\)"),
        (lambda predictions, references: None, "compute_metrics has no `return` with a value"),
        (forgets_to_return, "compute_metrics has no `return` with a value"),
        (3, "compute_metrics is a int; it must be"),
        ([len], r"compute_metrics takes \(obj, /\)"),
    ],
)
def test_a_metric_of_another_form_is_refused_at_construction(tmp_path, metric, told):
    args = VisionRewardConfig(str(tmp_path), report_to="none", use_cpu=True)
    parts = {"train_dataset": text_dataset(), "processing_class": text_processor()}
    with pytest.raises(TypeError, match=told):
        VisionRewardTrainer(tiny_model(), share_of_a, args, compute_metrics=metric, **parts)


def test_a_metric_that_returns_no_dict_is_told(tmp_path):
    args = VisionRewardConfig(str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True)
    parts = {"train_dataset": text_dataset(), "processing_class": text_processor()}
    trainer = VisionRewardTrainer(
        tiny_model(), share_of_a, args, compute_metrics=lambda predictions, references: 0.5, **parts
    )
    with pytest.raises(TypeError, match="compute_metrics returned a float; it must return a dict of numbers by name"):
        trainer.evaluate(text_dataset(4))


def test_batchwise_metrics_are_refused():
    with pytest.raises(ValueError, match="batch_eval_metrics=True has no effect here"):
        VisionRewardConfig("out", batch_eval_metrics=True)
