"""Captioning with the trainers: processor, loaders, TRL's text rewards, what is saved, the picture."""

import functools
import json
from pathlib import Path

import datasets
import evaluate
import pytest
import torch
from datasets import Dataset
from PIL import Image
from tiny import image_processor, tiny_images, tiny_model
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoProcessor, PreTrainedTokenizerFast

import vision_rl
from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer
from vision_rl.data.captions import load_coco_captions, load_karpathy_captions
from vision_rl.tasks.captioning import (
    CaptioningProcessor,
    CiderReward,
    DocumentFrequency,
    coco_captions,
    draw,
)
from vision_rl.tasks.captioning.processing import rejoined


SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
WORDS = [
    "[PAD]",
    "[CLS]",
    "[SEP]",
    "[UNK]",
    "a",
    "dog",
    "cat",
    "runs",
    "on",
    "grass",
    "the",
    "t",
    "shirt",
    "-",
    "'",
    "s",
]
PAD, START, END = 0, 1, 2
CAPTIONS = [
    ["a dog runs on grass", "the dog runs", "a dog on the grass"],
    ["a cat on the grass", "the cat runs on grass"],
    ["a dog", "the dog on grass"],
    ["the cat", "a cat runs"],
]


def bert_like_tokenizer(named: bool = True) -> PreTrainedTokenizerFast:
    """Like BERT's: lower case, punctuation as tokens of its own, `[CLS] caption [SEP]`."""
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {"bos_token": "[CLS]", "eos_token": "[SEP]"} if named else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]", **names
    )


def processor(**kwargs) -> CaptioningProcessor:
    return CaptioningProcessor(image_processor(), bert_like_tokenizer(), START, **kwargs)


def captioner(decoder: str = "bert"):
    model = tiny_model(decoder, vocab_size=len(WORDS), end=END)
    for holder in (model.config, model.generation_config):
        holder.decoder_start_token_id, holder.pad_token_id = START, PAD
    return model


def rows(count: int = 8) -> Dataset:
    captions = [CAPTIONS[row % len(CAPTIONS)] for row in range(count)]
    features = datasets.Features({"image": datasets.Image(), "captions": datasets.List(datasets.Value("string"))})
    return Dataset.from_dict({"image": tiny_images(count), "captions": captions}, features=features)


@pytest.mark.parametrize("blank", ["", " "])
def test_a_blank_caption_is_refused_before_training(blank):
    padded = rows(4).map(
        lambda row, index: {"captions": [*row["captions"], *([blank] if index else [])]}, with_indices=True
    )
    with pytest.raises(ValueError, match=r"Row 1, column `captions`: A caption is blank, .* \(3 of 4 rows"):
        processor().check_dataset(padded, {"captions": "captions"})


def settings(tmp_path, **kwargs) -> dict:
    return {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "max_completion_length": 8,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        **kwargs,
    }


def first_log(trainer) -> dict:
    return next(entry for entry in trainer.state.log_history if "loss" in entry)


# Processor


def test_labels_are_a_captions_tokens_with_the_end_token_and_without_the_start():
    labels = processor()(images=tiny_images(2), captions=[["a dog runs"], ["the cat"]])["labels"]
    assert labels.tolist() == [[4, 5, 7, END], [10, 6, END, -100]]


def test_evaluation_takes_the_first_caption_and_each_seed_one_of_them():
    images, captions = tiny_images(1), [["a", "dog", "cat"]]
    assert processor()(images=images, captions=captions)["labels"][0, 0] == 4
    drawn = [processor()(images=images, captions=captions, seeds=[seed])["labels"][0, 0].item() for seed in range(60)]
    assert set(drawn) == {4, 5, 6} and min(map(drawn.count, (4, 5, 6))) >= 10
    assert drawn[7] == processor()(images=images, captions=captions, seeds=[7])["labels"][0, 0]


def test_a_caption_that_is_too_long_is_cut_and_then_has_no_end():
    labels = processor(max_caption_length=3)(images=tiny_images(2), captions=[["a dog runs on grass"], ["a dog"]])
    assert labels["labels"].tolist() == [[4, 5, 7], [4, 5, END]]


def test_references_are_all_captions_of_the_image():
    assert processor().get_references([{"captions": CAPTIONS[0]}]) == [CAPTIONS[0]]


def test_a_decoded_caption_has_no_special_tokens_and_its_compounds_are_whole():
    ids = bert_like_tokenizer()("the dog's t-shirt")["input_ids"]
    assert processor().batch_decode([ids, [4, 5, END, PAD], [END], []]) == ["the dog's t-shirt", "a dog", "", ""]


@pytest.mark.parametrize(
    ("decoded", "text"),
    [
        ("a man ' s t - shirt", "a man's t-shirt"),
        ("she isn ' t here", "she isn't here"),
        ("five o ' clock", "five o'clock"),
        ("the dogs ' ball", "the dogs ' ball"),  # a possessive plural: CIDEr drops its apostrophe
        ("a ' quoted ' word", "a ' quoted ' word"),
        ("player # 12, 1, 000 fans, 3. 5 miles, 1 / 2 past", "player #12, 1,000 fans, 3.5 miles, 1/2 past"),
        ("two, three or four", "two, three or four"),
        ("a t. v. set in row b. a man sits", "a t.v. set in row b. a man sits"),
    ],
)
def test_spaces_that_wordpiece_put_into_words_are_taken_out(decoded, text):
    assert rejoined(decoded) == text


def test_other_tokenizers_texts_are_left_alone():
    tokenizer = bert_like_tokenizer()
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    ids = tokenizer("dog - cat")["input_ids"]
    assert CaptioningProcessor(image_processor(), tokenizer).batch_decode([ids]) == ["dog-cat"]  # fused, not rejoined


def test_one_completion_is_decoded_as_several_are():
    ids = bert_like_tokenizer()("the dog's t-shirt")["input_ids"]
    assert processor().decode(ids) == processor().batch_decode([ids])[0] == "the dog's t-shirt"


def test_a_processor_is_saved_and_found_again(tmp_path):
    processor(max_caption_length=20).save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, CaptioningProcessor) and loaded.max_caption_length == 20
    assert loaded.tokenizer.eos_token_id == END
    images = tiny_images(1)
    assert loaded(images=images, captions=[["a dog"]])["labels"].tolist() == [[4, 5, END]]


# Bad input


def test_a_tokenizer_without_end_or_pad_token_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match="no eos_token.*tokenizer.eos_token = tokenizer.sep_token"):
        CaptioningProcessor(image_processor(), bert_like_tokenizer(named=False))
    tokenizer = bert_like_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="no pad_token"):
        CaptioningProcessor(image_processor(), tokenizer)
    with pytest.raises(ValueError, match="max_caption_length must be at least 2"):
        processor(max_caption_length=1)


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ("a dog", r"the str 'a dog'. Put a single caption into a list: \[caption\]"),
        ([], "There is no caption"),
        (["a dog", None], "there is a NoneType"),
        (None, "the NoneType None"),
    ],
)
def test_rows_that_are_not_lists_of_captions_are_refused(captions, message):
    with pytest.raises(ValueError, match=message):
        processor()(images=tiny_images(1), captions=[captions])


def test_a_bad_row_is_named_before_training_starts(tmp_path):
    data = rows()
    captions = [*data["captions"][:5], [], *data["captions"][6:]]
    broken = data.remove_columns("captions").add_column("captions", captions, feature=data.features["captions"])
    with pytest.raises(ValueError, match="Row 5, column `captions`: There is no caption"):
        VisionMLETrainer(
            captioner(), VisionMLEConfig(**settings(tmp_path)), train_dataset=broken, processing_class=processor()
        )


def test_a_start_token_that_is_not_the_models_is_refused(tmp_path):
    other = CaptioningProcessor(image_processor(), bert_like_tokenizer(), decoder_start_token_id=3)
    with pytest.raises(ValueError, match="decoder_start_token_id is 3, but the model's is 1"):
        VisionMLETrainer(captioner(), VisionMLEConfig(**settings(tmp_path)), rows(), processing_class=other)


# With the trainers


def test_two_rewards_that_would_be_saved_in_one_place_are_refused_and_a_partial_one_is_saved(tmp_path):
    frequency = DocumentFrequency.from_references(list(rows()["captions"]), append_eos=True)
    reward, args = CiderReward(frequency, eos_token_id=END), VisionRewardConfig(**settings(tmp_path))
    parts = {"train_dataset": rows(), "processing_class": processor()}
    with pytest.raises(ValueError, match="Two rewards are of the class CiderReward"):
        VisionRewardTrainer(captioner(), [reward, reward], args, **parts)
    module = evaluate.load(vision_rl.metric_path("cider_reward"), document_frequency=frequency)
    for index, function in enumerate((functools.partial(reward), module)):
        trainer = VisionRewardTrainer(captioner(), function, args, **parts)
        trainer.save_model(str(tmp_path / str(index)))
        assert CiderReward.from_pretrained(tmp_path / str(index)).append_eos


@pytest.mark.parametrize("decoder", ["bert", "gpt2", "ours"])
def test_a_captioner_is_pretrained_and_tuned_for_cider_and_saved_with_its_frequencies(tmp_path, decoder):
    model, parts = captioner(decoder), {"processing_class": processor(), "compute_metrics": coco_captions}
    mle_args = VisionMLEConfig(**settings(tmp_path, max_steps=30, learning_rate=5e-3))
    mle = VisionMLETrainer(model, mle_args, train_dataset=rows(), eval_dataset=rows(), **parts)
    untrained = mle.evaluate()["eval_cider"]
    mle.train()
    assert mle.evaluate()["eval_cider"] > untrained
    frequency = DocumentFrequency.from_references(list(rows()["captions"]), append_eos=True)
    reward = CiderReward(frequency, eos_token_id=END)
    tune = VisionRewardConfig(**settings(tmp_path, num_generations=8))
    tuned = VisionRewardTrainer(model, reward, tune, train_dataset=rows(), eval_dataset=rows(), **parts)
    tuned.train()
    entry = first_log(tuned)
    assert 0 < entry["reward"] <= 10 and entry["sampling/sampling_logp_difference/max"] < 1e-5
    assert {"eval_cider", "eval_bleu_4", "eval_rouge_l", "eval_reward"} <= set(tuned.evaluate())
    tuned.save_model()
    loaded = CiderReward.from_pretrained(tmp_path)
    references = [CAPTIONS[0]]
    assert loaded(["a dog runs"], references=references) == reward(["a dog runs"], references=references)
    assert isinstance(AutoProcessor.from_pretrained(tmp_path), CaptioningProcessor)


def test_trls_rewards_of_token_ids_run_unmodified_beside_cider(tmp_path):
    from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment

    frequency = DocumentFrequency.from_references(list(rows()["captions"]), append_eos=True)
    rewards = [
        CiderReward(frequency),
        get_repetition_penalty_reward(ngram_size=2),
        get_soft_overlong_punishment(max_completion_len=8, soft_punish_cache=4),
    ]
    args = VisionRewardConfig(**settings(tmp_path))
    tuned = VisionRewardTrainer(captioner(), rewards, args, train_dataset=rows(), processing_class=processor())
    tuned.train()
    entry = first_log(tuned)
    assert -1 <= entry["rewards/repetition_penalty_reward/mean"] <= 0
    assert -1 <= entry["rewards/soft_overlong_punishment_reward/mean"] <= 0
    assert entry["reward"] == pytest.approx(
        sum(value for key, value in entry.items() if key.startswith("rewards/") and key.endswith("/mean")), abs=1e-5
    )


def test_trls_rewards_of_messages_run_unmodified_with_conversational_completions(tmp_path):
    from trl.rewards import think_format_reward

    seen = []

    def content_length(prompts, completions, **kwargs):  # as TRL's documentation writes rewards of messages
        seen.extend([*prompts, *completions])
        return [float(len(completion[0]["content"])) for completion in completions]

    frequency = DocumentFrequency.from_references(list(rows()["captions"]), append_eos=True)
    args = VisionRewardConfig(**settings(tmp_path, completions_format="conversational"))
    tuned = VisionRewardTrainer(
        captioner(),
        [think_format_reward, content_length, CiderReward(frequency)],
        args,
        train_dataset=rows(),
        eval_dataset=rows(4),
        processing_class=processor(),
        compute_metrics=coco_captions,  # a metric still gets plain strings
    )
    tuned.train()
    entry = first_log(tuned)
    assert entry["rewards/think_format_reward/mean"] == 0.0 and entry["rewards/content_length/mean"] > 0
    assert {role for (message,) in seen for role in [message["role"]]} == {"user", "assistant"}
    assert "eval_cider" in tuned.evaluate()


def test_only_text_can_be_wrapped_in_messages(tmp_path):
    class Lengths(torch.nn.Module):
        def forward(self, completion_ids, batch):
            return [len(ids) for ids in completion_ids.flatten(0, 1)]

    args = VisionRewardConfig(**settings(tmp_path, completions_format="conversational"))
    reward = DocumentFrequency.from_references(list(rows()["captions"]), append_eos=True)
    tuned = VisionRewardTrainer(
        captioner(),
        CiderReward(reward),
        args,
        train_dataset=rows(),
        processing_class=processor(),
        completion_decoder=Lengths(),
    )
    with pytest.raises(TypeError, match="completions_format='conversational' is for text, but a completion is a int"):
        tuned.train()
    with pytest.raises(ValueError, match="completions_format must be 'standard' or 'conversational'"):
        VisionRewardConfig(**settings(tmp_path, completions_format="chat"))


# Loaders


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images" / "val2014").mkdir(parents=True)
    for index in range(3):
        for place in ("", "val2014"):
            Image.new("RGB", (16, 12), (40 * index, 0, 0)).save(tmp_path / "images" / place / f"{index}.png")
    return tmp_path


def write_json(folder, content):
    (folder / "captions.json").write_text(json.dumps(content))
    return folder / "images", folder / "captions.json"


def coco_content():
    return {
        "images": [{"id": 100 + index, "file_name": f"{index}.png"} for index in range(3)],
        "annotations": [
            {"id": 1, "image_id": 102, "caption": "a\ndog "},
            {"id": 2, "image_id": 100, "caption": "A cat."},
            {"id": 3, "image_id": 102, "caption": "the dog"},
        ],
    }


def test_coco_captions_are_grouped_by_image_and_in_one_line_each(folder):
    dataset = load_coco_captions(*write_json(folder, coco_content()))
    assert dataset["image_id"][:] == [100, 102]  # 101 has none
    assert dataset["captions"][:] == [["A cat."], ["a dog", "the dog"]]
    assert dataset[1]["image"].size == (16, 12)


def test_coco_captions_that_do_not_fit_their_images_are_refused(folder):
    content = coco_content()
    content["annotations"][0]["image_id"] = 7
    with pytest.raises(ValueError, match="1 of 3 annotations .* image_id 7"):
        load_coco_captions(*write_json(folder, content))
    content = coco_content()
    del content["annotations"][0]["caption"]
    with pytest.raises(
        ValueError, match="1 of 3 annotations have no `caption`; the first: {'id': 1, 'image_id': 102}"
    ):
        load_coco_captions(*write_json(folder, content))
    content = coco_content()
    content["images"][1]["id"] = 100
    with pytest.raises(ValueError, match="1 images with the id of another image"):
        load_coco_captions(*write_json(folder, content))
    with pytest.raises(ValueError, match="not a file of COCO's captions: it has no 'images', 'annotations'"):
        load_coco_captions(*write_json(folder, {}))
    (folder / "images" / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 3 images are not there"):
        load_coco_captions(*write_json(folder, coco_content()))


def test_captions_of_a_photo_of_two_ids_are_rows_of_their_own_with_a_warning(folder, caplog):
    content = coco_content()
    content["images"][0]["file_name"] = "./2.png"
    assert load_coco_captions(*write_json(folder, content))["captions"][:] == [["A cat."], ["a dog", "the dog"]]
    assert "2 of 3 images share their file with another, so that an answer is compared with a part" in caplog.text


@pytest.mark.parametrize("caption", ["", " \n", None, 7, ["a dog"], "\ud83d", float("nan")])
def test_a_caption_without_a_text_stops_the_load_or_is_left_out_and_either_way_counted(folder, caption, caplog):
    content = coco_content()
    content["annotations"][1]["caption"] = caption
    content["annotations"].append({"id": 4, "image_id": 101, "caption": "A bird."})
    with pytest.raises(ValueError, match="1 of 4 annotations have (no|a) `caption`.* the first: .*'id': 2") as error:
        load_coco_captions(*write_json(folder, content))
    assert str(folder / "captions.json") in str(error.value)
    dataset = load_coco_captions(*write_json(folder, content), on_bad_row="skip")
    assert dataset["image_id"][:] == [101, 102] and "1 of 4 annotations have" in caplog.text


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ([], "has no captions: its list `annotations` is empty"),
        (
            [{"id": 1, "image_id": 100, "bbox": [1, 1, 5, 5]}],
            "its annotations have a `bbox`. Read it with load_coco_detection",
        ),
        ([{"id": 1, "image_id": "100", "caption": "a dog"}], r"whose ids are numbers, not texts"),
        (["a dog"], "1 of 1 annotations have no `caption`"),
    ],
)
def test_files_without_captions_are_refused(folder, annotations, message):
    with pytest.raises(ValueError, match=message):
        load_coco_captions(*write_json(folder, {**coco_content(), "annotations": annotations}))


def karpathy_content():
    splits = ["train", "restval", "test"]
    return {
        "dataset": "coco",
        "images": [
            {
                "filepath": "val2014",
                "filename": f"{index}.png",
                "imgid": index,
                "cocoid": 500 + index,
                "split": split,
                "sentences": [{"raw": f"caption {index}."}, {"raw": "another"}],
            }
            for index, split in enumerate(splits)
        ],
    }


def test_karpathys_split_is_read_by_its_parts(folder):
    paths = write_json(folder, karpathy_content())
    assert load_karpathy_captions(*paths)["image_id"][:] == [500, 501]  # train and restval
    test = load_karpathy_captions(*paths, split="test")
    assert test["image_id"][:] == [502] and test["captions"][:] == [["caption 2.", "another"]]
    assert test[0]["image"].getpixel((0, 0)) == (80, 0, 0)
    with pytest.raises(ValueError, match=r"no image of the split \['tset'\]"):
        load_karpathy_captions(*paths, split=("train", "tset"))
    with pytest.raises(ValueError, match="is not Karpathy's split"):
        load_karpathy_captions(*write_json(folder, coco_content()))
    write_json(folder, karpathy_content())
    with pytest.raises(ValueError, match=r"no image of the split \['dev'\]; it has: restval, test, train"):
        load_karpathy_captions(*paths, split="dev")
    content = karpathy_content()
    content["images"][2]["sentences"] = []
    with pytest.raises(
        ValueError,
        match=r"1 of 3 images have no sentence; the first: number 3: {'filepath': 'val2014', 'filename': '2.png'",
    ):
        load_karpathy_captions(*write_json(folder, content), split="test")


@pytest.mark.parametrize(
    ("change", "image_id"),
    [
        ({"imgid": None}, 502),
        ({"cocoid": None}, 2),
        ({"cocoid": "x"}, "x"),
        ({"filepath": None, "filename": "val2014/2.png"}, 502),
    ],
)
def test_karpathys_ids_are_cocos_or_else_his(folder, change, image_id):
    content = karpathy_content()
    entry = {**content["images"][2], **change}
    content["images"][2] = {key: value for key, value in entry.items() if value is not None}
    assert load_karpathy_captions(*write_json(folder, content), split="test")["image_id"][:] == [image_id]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cocoid": None, "imgid": None}, "1 of 3 images have no `imgid`"),
        ({"filename": None}, "1 of 3 images have no `filename`"),
        ({"filename": "../../x.png"}, "leads out of its folder"),
        (
            {"sentences": [{"raw": "fine"}, {"tokens": ["no"]}]},
            "1 of 2 sentences have no `raw`; the first: 2.png: None",
        ),
        ({"sentences": ["a dog"]}, "1 of 1 sentences have no `raw`"),
        ({"split": None}, r"no image of the split \['test'\]"),
    ],
)
def test_images_of_karpathys_that_cannot_be_used_are_named_in_their_split_only(folder, change, message):
    content = karpathy_content()
    content["images"][2] |= change
    with pytest.raises(ValueError, match=message):
        load_karpathy_captions(*write_json(folder, content), split="test")
    if change.get("split", "test"):
        assert len(load_karpathy_captions(*write_json(folder, content))) == 2


@pytest.mark.parametrize(("name", "count", "captions"), [("flickr8k_1000", 802, 4010), ("coco_mini_680", 374, None)])
def test_real_folders_are_read_whole(name, count, captions):
    if not (SHARED / name).exists():
        pytest.skip(f"{SHARED / name} is not there")
    dataset = load_coco_captions(SHARED / name / "images", SHARED / name / "captions.json")
    assert len(dataset) == count
    assert captions is None or sum(map(len, dataset["captions"])) == captions
    dataset[0]["image"].load()


# The picture


def test_a_picture_has_the_image_and_lines_of_text_below_it():
    image = Image.new("RGB", (64, 32), (200, 0, 0))
    short, long = draw(image, "a dog"), draw(image, {"before": "a dog " * 20, "after": ""}, ["the dog", "a cat"])
    assert short.width == long.width == 512 and 256 < short.height < long.height
    assert draw(image, "a dog", width=320).width == 320
    assert short.getpixel((5, 5)) == (200, 0, 0)
    below = torch.tensor(list(short.crop((0, 256, 512, short.height)).convert("L").tobytes()))
    assert (below < 128).any()
