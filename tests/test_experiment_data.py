"""How the experiments read folders and options, and what they say if these do not suffice."""

import json

import pytest
import torch
from PIL import Image
from transformers import BertConfig, BertLMHeadModel, BertTokenizer

from vision_rl.tasks import captioning, detection


@pytest.fixture
def folder(tmp_path):
    """Twenty images, each with a box and a caption, in folders of two images."""
    images, boxes, captions = [], [], []
    for index in range(20):
        name = f"part{index // 10}/{index}.png"
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (200, index, 0)).save(tmp_path / "images" / name)
        images.append({"id": index, "file_name": name})
        boxes.append({"id": index, "image_id": index, "category_id": 3, "bbox": [1, 1, 9, 9]})
        captions.append({"id": index, "image_id": index, "caption": f"photo {index}"})
    categories = [{"id": 3, "name": "x"}]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    return tmp_path


@pytest.mark.parametrize("task", [detection, captioning])
def test_a_folder_of_images_without_its_annotations_is_refused_and_not_replaced_by_digits(task, folder):
    with pytest.raises(ValueError, match="annotation_file"):
        task.load_data(task.Options(images_dir=f"{folder}/images", scenes=8), "train")


def test_every_caption_is_tested_in_one_fold_and_bad_rows_are_skipped_where_one_says_so(experiment, folder):
    captioner = experiment("captioner")
    (folder / "images" / "part1" / "19.png").unlink()
    options = captioning.Options(images_dir=f"{folder}/images", annotation_file=f"{folder}/captions.json")
    with pytest.raises(FileNotFoundError, match="1 of 20 images are not there"):
        captioner.folds(options, 5)
    options.on_bad_annotation = "skip"
    rows, folds = captioner.folds(options, 5)
    assert len(rows) == 19
    assert sorted(row for of_fold in folds for row in of_fold["test"]) == list(range(19))
    for of_fold in folds:
        assert sorted(row for part in of_fold.values() for row in part) == list(range(19))
        assert [len(of_fold[split]) for split in ("validation", "test")] in ([2, 4], [1, 4], [2, 3])
    with pytest.raises(ValueError, match="19 images make no 12 folds"):
        captioner.folds(options, 12)


def test_captions_without_a_folder_are_asked_for(experiment):
    with pytest.raises(ValueError, match="Say what to learn from: --images_dir"):
        experiment("captioner").folds(captioning.Options(), 5)


def test_photos_for_colorization_are_read_from_nested_folders(experiment, folder):
    data = experiment("dense_data")
    Image.new("RGB", (32, 32), (90, 90, 90)).save(folder / "images" / "part0" / "grey.png")
    splits = data.colorization_data(data.DataArguments(images_dir=f"{folder}/images"))
    assert [len(rows) for rows in splits] == [16, 16, 2, 2]
    assert splits.later is splits.train


def test_what_starts_from_a_model_of_scenes_is_trained_on_scenes_that_the_model_has_not_seen_by_default(experiment):
    data = experiment("dense_data")
    splits = data.panoptic_data(data.DataArguments(num_eval_images=3))
    assert [len(rows) for rows in splits] == [1_000_000, 1_000_000, 3, 3]
    drawn = [rows[index]["image"].convert("RGB").tobytes() for rows in splits for index in range(3)]
    assert len(set(drawn)) == 12
    assert splits.later[0].keys() == splits.test[0].keys()
    few = data.panoptic_data(data.DataArguments(num_train_images=3, num_eval_images=3, fresh_scenes=False))
    assert [row["image"].tobytes() for row in few.later] == [row["image"].tobytes() for row in few.train]


def test_a_trimmed_decoder_splits_and_predicts_the_words_that_it_keeps_as_before(experiment):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "run", "##s", "the"]
    tokenizer = BertTokenizer(vocab={word: place for place, word in enumerate(words)})
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    decoder = BertLMHeadModel(BertConfig(vocab_size=len(words), is_decoder=True, **size)).eval()
    torch.nn.init.normal_(decoder.get_output_embeddings().bias)
    before = decoder(**tokenizer("a dog runs", return_tensors="pt")).logits
    trimmed = experiment("captioner").trim_vocabulary(tokenizer, decoder, ["a dog", "the dog runs"])
    assert trimmed.tokenize("A dog runs") == ["a", "dog", "run", "##s"]
    assert trimmed.convert_ids_to_tokens(range(len(trimmed))) == [word for word in words if word != "cat"]
    kept = [place for place, word in enumerate(words) if word != "cat"]
    torch.testing.assert_close(decoder(**trimmed("a dog runs", return_tensors="pt")).logits, before[..., kept])
    with pytest.raises(TypeError, match="must be a BERT"):
        experiment("captioner").trim_vocabulary(object(), decoder, ["a dog"])
