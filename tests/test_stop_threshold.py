"""The threshold at which greedy decoding leaves a box out, and the class score, are the same in `generate` and here."""

import numpy as np
import pytest
import torch
from foreign_model import ForeignEncoderDecoder
from hypothesis import given, settings
from hypothesis import strategies as st
from test_detection_processor import box_dataset, decoded, options, processor, row, tiny_detector
from test_sampling import DECODERS, pixels, teacher_forced_logps
from tiny import tiny_model
from transformers import AutoProcessor, LogitsProcessorList, NoRepeatNGramLogitsProcessor, VisionEncoderDecoderModel

import vision_rl
from vision_rl import VisionMLEConfig, VisionMLETrainer
from vision_rl.models.sampling import sample
from vision_rl.tasks.detection.rewards import ABSENT
from vision_rl.tasks.detection.stopping import StopThreshold


def spread_detector(p):
    """A model that is unsure, and for which "absent" is often the likeliest id."""
    model = tiny_detector(p)
    torch.manual_seed(1)
    torch.nn.init.normal_(model.decoder.get_output_embeddings().weight, std=0.3)
    with torch.no_grad():
        model.decoder.get_output_embeddings().bias[ABSENT] += 2.0
    return model.eval()


def greedy(model, p, count=8):
    images = p(images=[row["image"] for row in box_dataset(count)])["pixel_values"]
    return images, sample(
        model, images, do_sample=False, max_completion_length=24, logits_processor=p.logits_processor
    )


# --- the score ------------------------------------------------------------------------------------------------------


def test_the_class_score_is_the_class_times_the_box_being_there():
    p = processor(score="class")
    ids = [3, 3, 1003, 1003, 1004, 1, 3, 3, 503, 503, 1005, 2]
    logps, watched = torch.zeros(1, 12), torch.zeros(1, 12, 3)
    logps[0, [4, 10]] = torch.tensor([0.9, 0.5]).log()
    watched[0, [0, 6], 2] = torch.tensor([0.25, 1e-9]).log()  # of "absent" at the first token of each box
    found = decoded(p, ids, (32, 32), per_token_logps=logps, watched_logps=watched)
    assert found["scores"].tolist() == pytest.approx([0.9 * 0.75, 0.5 * (1 - 1e-9)], rel=1e-6)


def test_a_box_that_is_certain_to_be_absent_scores_0():
    found = decoded(processor(score="class"), [3, 3, 9, 9, 1004, 1], (8, 8), watched_logps=torch.zeros(1, 6, 3))
    assert found["scores"].tolist() == [0.0]


# --- the threshold --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("threshold", "taken"), [(0.3, ABSENT), (0.39, ABSENT), (0.5, 2), (1.0, 2)])
def test_absent_is_taken_only_where_it_is_more_probable_than_the_threshold(threshold, taken):
    logits = torch.tensor([[0.4, 0.25, 0.35]]).log()
    assert StopThreshold(threshold)(None, logits).argmax(-1).tolist() == [taken]
    assert StopThreshold(threshold)(None, logits + 7.0).argmax(-1).tolist() == [taken]  # a constant does not matter
    assert logits.isfinite().all()  # the caller's logits are not changed


def test_a_probability_of_exactly_the_threshold_is_not_above_it():
    assert StopThreshold(0.5)(None, torch.zeros(1, 2)).argmax(-1).tolist() == [1]
    assert StopThreshold(1.0)(None, torch.tensor([[99.0, -99.0]])).argmax(-1).tolist() == [1]


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_a_higher_threshold_never_takes_absent_where_a_lower_one_does_not(seed, one, other):
    low, high = sorted((one, other))
    logits = torch.randn(20, 4, generator=torch.Generator().manual_seed(seed)) * 3
    takes = [StopThreshold(t)(None, logits).argmax(-1) == ABSENT for t in (low, high)]
    assert (takes[0] | ~takes[1]).all()
    others = [StopThreshold(t)(None, logits)[:, 1:] for t in (low, high)]
    assert torch.equal(others[0], logits[:, 1:]) and torch.equal(*others)


def test_thresholds_of_0_and_1_are_plain_greedy_decoding_and_absence_forbidden():
    p = processor(num_bins=32)
    model = spread_detector(p)
    images, plain = greedy(model, p)
    assert p.logits_processor is None and (plain.completion_ids == ABSENT).any()
    never = greedy(model, processor(num_bins=32, stop_threshold=1.0))[1]
    model.generation_config.suppress_tokens = [ABSENT]
    forbidden = sample(model, images, do_sample=False, max_completion_length=24)
    assert torch.equal(never.completion_ids, forbidden.completion_ids)


def test_the_log_probabilities_stay_the_models_own():
    p = processor(num_bins=32, stop_threshold=0.6)
    model = spread_detector(p)
    images, found = greedy(model, p)
    ids = found.completion_ids.flatten(0, 1)
    logits = model(pixel_values=images, decoder_input_ids=torch.nn.functional.pad(ids[:, :-1], (1, 0))).logits
    expected = logits.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)
    torch.testing.assert_close(found.per_token_logps[:, 0], expected, rtol=0, atol=1e-5)
    assert (ids == ABSENT).any() and (logits.argmax(-1) != ids).any()  # some boxes are left out, others not


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), "0.5"])
def test_a_threshold_is_a_probability(threshold):
    with pytest.raises(ValueError, match="stop_threshold"):
        processor(stop_threshold=threshold)


# --- the same everywhere --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["confidence", "likelihood", "class"])
def test_what_is_saved_says_the_same_to_generate_and_to_the_pipeline(tmp_path, score):
    p, dataset = processor(num_bins=32, score=score, stop_threshold=0.4), box_dataset(6)
    model = spread_detector(p)
    trainer = VisionMLETrainer(model, VisionMLEConfig(**options(tmp_path)), eval_dataset=dataset, processing_class=p)
    predicted = trainer.predict(dataset).predictions
    trainer.save_model(tmp_path)
    again, saved = VisionEncoderDecoderModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert (saved.stop_threshold, saved.score) == (0.4, score)
    inputs = saved(images=[row["image"] for row in dataset])
    how = {"logits_processor": saved.logits_processor, "return_dict_in_generate": True, "output_logits": True}
    outputs = again.generate(**inputs, **how)
    sizes = [row["image"].size for row in dataset]
    bare = saved.batch_decode(outputs.sequences, image_sizes=sizes)
    scored = saved.post_process_object_detection(outputs, threshold=-1.0, target_sizes=[(h, w) for w, h in sizes])
    piped = vision_rl.pipeline(tmp_path, use_cpu=True)([row["image"] for row in dataset])
    plainly = again.generate(**inputs)
    assert not torch.equal(plainly, outputs.sequences)  # the threshold makes a difference here
    for expected, *others in zip(predicted, bare, scored, piped, strict=True):
        for found in others:
            for name in ("boxes", "labels"):
                np.testing.assert_allclose(np.asarray(found[name]), expected[name], atol=1e-4)
        for found in others[1:]:
            np.testing.assert_allclose(np.asarray(found["scores"]), expected["scores"], atol=1e-4)


def test_scores_that_the_threshold_has_changed_are_refused():
    p = processor(num_bins=32, stop_threshold=0.5)
    model, inputs = spread_detector(p), p(images=[row()["image"]])
    outputs = model.generate(
        **inputs, logits_processor=p.logits_processor, return_dict_in_generate=True, output_scores=True
    )
    with pytest.raises(ValueError, match="return_dict_in_generate=True, output_logits=True"):
        p.post_process_object_detection(outputs)


def test_samples_are_drawn_without_it(tmp_path):
    rows, drawn = box_dataset(4), []
    for threshold in (0.0, 1.0):
        p = processor(num_bins=32, stop_threshold=threshold)
        trainer = VisionMLETrainer(
            spread_detector(p), VisionMLEConfig(**options(tmp_path)), eval_dataset=rows, processing_class=p
        )
        torch.manual_seed(0)
        drawn.append(trainer.complete(p(images=[row["image"] for row in rows]), 3).completion_ids)
    assert torch.equal(*drawn)
    with pytest.raises(ValueError, match="do_sample=False"):
        sample(trainer.model, pixels(), logits_processor=p.logits_processor)


def test_models_that_are_sampled_through_generate_follow_it():
    p = processor(num_bins=32, stop_threshold=0.4)
    model = spread_detector(p)
    expected = greedy(model, p)[1]
    through_generate = greedy(ForeignEncoderDecoder.wrapping(model), p)[1]
    assert torch.equal(through_generate.completion_ids, expected.completion_ids)
    torch.testing.assert_close(through_generate.per_token_logps, expected.per_token_logps, rtol=0, atol=1e-5)


@pytest.mark.parametrize("decoder", DECODERS)
def test_any_logits_processor_is_given_the_ids_so_far_as_by_generate(decoder):
    model = tiny_model(decoder, sharp=1.0)
    processors = LogitsProcessorList([NoRepeatNGramLogitsProcessor(2)])
    found = sample(model, pixels(6), do_sample=False, max_completion_length=10, logits_processor=processors)
    ids, mask = found.completion_ids[:, 0], found.completion_mask[:, 0]
    written = model.generate(pixels(6), max_new_tokens=10, do_sample=False, no_repeat_ngram_size=2)[:, 1:]
    assert torch.equal(ids * mask, written[:, : ids.shape[1]] * mask)
    plain = sample(model, pixels(6), do_sample=False, max_completion_length=10)
    assert not torch.equal(plain.completion_ids[..., : ids.shape[1]], found.completion_ids)
    difference = (teacher_forced_logps(model, pixels(6), found.completion_ids) - found.per_token_logps)[:, 0]
    assert (difference * mask).abs().max() < 1e-5
