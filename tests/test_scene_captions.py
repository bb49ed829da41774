"""The experiment with captions of scenes: its vocabulary, its measures, and its MLE of all captions at once."""

import numpy as np
import pytest
import torch

from vision_rl import VisionMLEConfig
from vision_rl.tasks.captioning import CiderReward, DocumentFrequency
from vision_rl.trainer.losses import mle_loss


@pytest.fixture
def ground(experiment):
    return experiment("caption_scenes")


@pytest.fixture
def measures(experiment):
    return experiment("caption_measures")


def test_every_caption_is_read_back_as_it_was(ground):
    scenes = ground.captioned_scenes("test", 60)
    captions = [text for of_image in ground.captions_of(scenes) for text in of_image]
    tokenizer = ground.word_tokenizer([captions])
    ids = tokenizer(captions)["input_ids"]
    assert tokenizer.batch_decode(ids) == captions
    assert max(map(len, ids)) < ground.MAX_TOKENS  # MAX_TOKENS includes the end token


def test_the_vocabulary_has_the_words_of_all_splits(ground):
    processor = ground.make_processor()
    for split in ("train", "validation", "test"):
        captions = ground.captions_of(ground.captioned_scenes(split, 300, seed=7, min_digits=0))
        processor.tokenizer([text for of_image in captions for text in of_image])  # an unknown word would raise


def test_a_form_is_a_sentence_without_its_digits_colours_places_and_ground(measures):
    forms = {
        measures.sentence_form("a red 3 left of an orange 7 on brick"),
        measures.sentence_form("an orange 1 below a pink 9 on a photo"),
    }
    assert forms == {"a COLOUR DIGIT BESIDE a COLOUR DIGIT on GROUND"}
    assert measures.sentence_form("two digits on grass") != measures.sentence_form("three digits on grass")


def test_as_many_equally_frequent_forms_would_be_as_various(measures):
    assert measures.effective_forms(["a red 3", "a blue 8", "one digit", "two digits"] * 2) == pytest.approx(
        2 * 2**0.5
    )
    assert measures.num_forms(["a red 3", "a blue 8", "one digit", "two digits"]) == 3


def test_the_consensus_is_the_sample_that_the_others_share_most_with(measures):
    texts = ["a red 3 on brick", "a red 3 on grass", "a red 3 on brick", "a blue 8"] + ["a blue 8"] * 3 + ["a red 3"]
    frequency = DocumentFrequency.from_references([[text] for text in texts], append_eos=True)
    reward = CiderReward(frequency, eos_token_id=1)
    chosen = measures.consensus(texts, [[5, 1]] * 8, 4, reward)
    assert [texts[place] for place in chosen] == ["a red 3 on brick", "a blue 8"]


def test_a_sample_that_was_cut_off_is_not_the_consensus(measures):
    texts, frequency = ["a red 3"] * 3, DocumentFrequency.from_references([["a red 3"], ["a dog"]], append_eos=True)
    reward = CiderReward(frequency, eos_token_id=1)
    assert measures.consensus(texts, [[5], [5, 1], [5, 1]], 3, reward).tolist() == [1]


def test_mle_of_all_captions_is_the_mean_over_the_tokens_of_all_of_them(experiment, ground, tmp_path):
    study = experiment("scene_captioning_study")
    scenes = ground.captioned_scenes("train", 4)
    processor = ground.make_processor()
    model = ground.captioner(processor, seed=0).eval()
    torch.nn.init.normal_(model.decoder.get_output_embeddings().weight)  # a new head is zero
    args = VisionMLEConfig(str(tmp_path), per_device_train_batch_size=4, report_to="none", use_cpu=True)
    trainer = study.AllCaptionsMLETrainer(model, args, train_dataset=scenes, processing_class=processor)
    batch = next(iter(trainer.get_train_dataloader()))
    count = trainer._items_in_step([batch])
    loss = trainer.compute_loss(model, trainer._prepare_inputs(batch), num_items_in_batch=count)

    losses, tokens = 0.0, 0
    for scene in scenes:
        for text in scene["captions"]:  # the definition: one image with one caption at a time
            inputs = processor(images=[scene["image"]], captions=[[text]])
            with torch.no_grad():
                logits = model(pixel_values=inputs["pixel_values"], labels=inputs["labels"]).logits
            losses += mle_loss(logits, inputs["labels"]).sum().item()
            tokens += inputs["labels"].numel()
    assert count == tokens
    assert loss.item() == pytest.approx(losses / tokens, rel=1e-5)
    loss.backward()
    assert all(parameter.grad.any() for parameter in model.encoder.parameters())


def test_columns_are_of_the_images_and_of_their_resamples(measures):
    captions, references = ["a red 3", "a blue 8 on"], [["a red 3", "one digit"], ["a green 7"]]
    weights = np.array([[1, 1], [2, 0]])
    columns = measures.caption_columns(captions, references, weights, {"reward": [1.0, 0.0]})
    assert columns["reward"].tolist() == [0.5, 1.0]
    assert columns["unfinished"].tolist() == [0.5, 0.0] and columns["num_words"].tolist() == [3.5, 3.0]
    assert columns["bleu_4"][0] == columns["bleu_4"][1]
