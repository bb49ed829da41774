"""Evaluate modules as rewards and metrics, in every form a user may give them; sizes come from the processor."""

import functools

import evaluate
import pytest
import test_captioning
import test_colorization_processor
import test_detection_processor
import test_panoptic_processor
from tiny import share_of_a, text_dataset, text_processor, tiny_model

from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer, metric_path
from vision_rl.tasks.captioning import CiderReward, DocumentFrequency
from vision_rl.tasks.colorization import ColorfulnessReward
from vision_rl.tasks.detection import AveragePrecisionReward, RecallReward, coco_map
from vision_rl.tasks.ocr import character_accuracy_reward, character_error_rate
from vision_rl.tasks.panoptic import PanopticQuality, PanopticReward
from vision_rl.trainer.reward_functions import as_function


pytestmark = pytest.mark.usefixtures("one_thread")


def trainer(tmp_path, reward, model=None, rows=None, processor=None, decoder=None, metric=None, **options):
    shared = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
    args = VisionRewardConfig(str(tmp_path), **{"per_device_train_batch_size": 4, "max_steps": 2, **shared, **options})
    return VisionRewardTrainer(
        model or tiny_model(),
        reward,
        args,
        train_dataset=text_dataset(8) if rows is None else rows,
        eval_dataset=text_dataset(8) if rows is None else rows,
        processing_class=processor or text_processor(),
        compute_metrics=metric,
        completion_decoder=decoder,
    )


# --- our modules as rewards, each against its function --------------------------------------------------------


def test_a_modules_compute_with_options_is_a_reward_with_them(tmp_path):
    module = evaluate.load(metric_path("ocr_reward"))
    exact = as_function(functools.partial(module.compute, kind="exact_match"), "exact")
    assert exact(["ab", "b"], None, references=["ab", "a"]) == [1.0, 0.0]
    with pytest.raises(TypeError, match="reward `wrong` cannot be called so: .* 'sort'"):
        as_function(functools.partial(module.compute, sort="exact_match"), "wrong")


def ocr():
    return {}, evaluate.load(metric_path("ocr_reward")), character_accuracy_reward


def detection():
    p = test_detection_processor.processor(num_bins=32)
    parts = {"model": test_detection_processor.tiny_detector(p), "rows": test_detection_processor.box_dataset(8)}
    module = evaluate.load(metric_path("detection_reward"), class_counts=[5, 2, 1])
    return parts | {"processor": p}, module, AveragePrecisionReward(class_counts=[5, 2, 1], confidence_weight=0)


def captioning():
    rows = test_captioning.rows()
    frequency = DocumentFrequency.from_references(list(rows["captions"]), append_eos=True)
    module = evaluate.load(metric_path("cider_reward"), document_frequency=frequency)
    parts = {"model": test_captioning.captioner(), "rows": rows, "processor": test_captioning.processor()}
    return parts, module, CiderReward(frequency, eos_token_id=test_captioning.END)


def panoptic():
    p = test_panoptic_processor.processor()
    rows = [test_panoptic_processor.row(test_panoptic_processor.quarters(64, 48)) for _ in range(8)]
    parts = {"model": tiny_model(vocab_size=p.vocab_size, end=None, length=4), "rows": rows, "processor": p}
    module = evaluate.load(metric_path("panoptic_reward"))
    return parts | {"decoder": test_panoptic_processor.FourCodes(p)}, module, PanopticReward()


def colorization():
    p = test_colorization_processor.processor()
    rows = test_colorization_processor.photo_dataset(test_colorization_processor.photos(8))
    parts = {"model": tiny_model(vocab_size=p.vocab_size, end=None), "rows": rows, "processor": p}
    module = evaluate.load(metric_path("colorfulness_reward"))
    return parts | {"decoder": test_colorization_processor.Palette(p)}, module, ColorfulnessReward()


@pytest.mark.parametrize("task", [ocr, detection, captioning, panoptic, colorization])
def test_a_reward_module_of_every_task_pays_what_its_function_pays(tmp_path, task):
    parts, module, function = task()
    function = function if task is not detection else function.for_processor(parts["processor"])
    for reward in (module, module.compute):

        def paid(**columns):
            return function(**columns)

        tuned = trainer(tmp_path, [reward, paid], **parts)
        tuned.train()
        first, second = tuned.reward.names
        assert first == module.name
        for entry in tuned.state.log_history[:2]:
            assert entry[f"rewards/{first}/mean"] == pytest.approx(entry[f"rewards/{second}/mean"], abs=1e-6)


@pytest.mark.parametrize(
    "name", ["ocr_reward", metric_path("ocr_reward"), metric_path("ocr_reward") + "/ocr_reward.py"]
)
def test_a_module_is_taken_by_our_name_its_folder_or_its_file(tmp_path, name):
    tuned = trainer(tmp_path, [name, character_accuracy_reward])
    assert tuned.evaluate()["eval_reward"] == pytest.approx(
        2 * tuned.evaluate()["eval_rewards/character_accuracy_reward/mean"]
    )


def test_what_a_module_lacks_is_said_when_the_trainer_is_made(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"cider_reward cannot be loaded by its path alone: .*document_frequency=file.*pass the module",
    ):
        trainer(tmp_path, "cider_reward")
    with pytest.raises(
        ValueError, match="detection_reward needs the num_bins of a DetectionProcessor, not TextProcessor"
    ):
        trainer(tmp_path, "detection_reward")


@pytest.mark.parametrize("name", ["character_error_rate", "coco_map", "cider", "colorfulness"])
def test_a_metric_module_is_no_reward(tmp_path, name):
    module = evaluate.load(metric_path(name))
    for reward in (module, module.compute, name):
        with pytest.raises(
            TypeError, match=f"`{name}` gives.*needs `rewards`, one number per completion.*compute_metrics"
        ):
            trainer(tmp_path, reward)


def test_a_combination_is_given_as_its_modules(tmp_path):
    combined = evaluate.combine([evaluate.load(metric_path("ocr_reward"))] * 2)
    for reward in (combined, combined.compute):
        with pytest.raises(TypeError, match=r"combination of several: give its modules one by one.*reward_weights"):
            trainer(tmp_path, reward)


def test_a_users_module_in_a_file_is_a_reward_too(tmp_path):
    (tmp_path / "longer").mkdir()
    (tmp_path / "longer" / "longer.py").write_text(
        "import datasets\nimport evaluate\n\n\n"
        "class Longer(evaluate.Metric):\n"
        "    def _info(self):\n"
        "        text = datasets.Value('string')\n"
        "        features = datasets.Features({'predictions': text, 'references': text})\n"
        "        return evaluate.MetricInfo(description='', citation='', features=features)\n\n"
        "    def _compute(self, predictions, references):\n"
        "        return dict(rewards=[float(len(text)) for text in predictions])\n"
    )
    tuned = trainer(tmp_path / "out", str(tmp_path / "longer"))
    tuned.train()
    assert tuned.reward.names == ["longer"]
    assert tuned.state.log_history[0]["reward"] > 0


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_a_metric_is_a_function_a_module_its_compute_a_path_or_several_of_these(tmp_path):
    module = evaluate.load(metric_path("character_error_rate"))
    expected = trainer(tmp_path, share_of_a, metric=character_error_rate).evaluate()
    for metric in (module, module.compute, "character_error_rate", metric_path("character_error_rate"), [module]):
        metrics = trainer(tmp_path, share_of_a, metric=metric).evaluate()
        assert metrics["eval_cer"] == expected["eval_cer"]
    both = trainer(tmp_path, share_of_a, metric=[module, lambda predictions, references: {"cer": 7.0}]).evaluate()
    assert (both["eval_cer"], both["eval_<lambda>_cer"]) == (expected["eval_cer"], 7.0)
    combined = trainer(tmp_path, share_of_a, metric=evaluate.combine([module])).evaluate()
    assert combined["eval_cer"] == expected["eval_cer"]


def test_a_metric_that_is_none_is_refused_when_the_trainer_is_made(tmp_path):
    for metric, told in (
        (
            lambda eval_pred: {},
            r"takes \(eval_pred\); it must be compute_metrics\(predictions=.*EvalPrediction of ids",
        ),
        ([character_error_rate, lambda eval_pred: {}], r"takes \(eval_pred\)"),
        (7, "compute_metrics is a int; it must be"),
    ):
        with pytest.raises(TypeError, match=told):
            trainer(tmp_path, share_of_a, metric=metric)
    for metric, told in (
        ("rouge", r"evaluate.load\('rouge'\)"),
        ([], "empty list"),
        ("panoptic_quality", "categories="),
    ):
        with pytest.raises(ValueError, match=told):
            trainer(tmp_path, share_of_a, metric=metric)


# --- sizes come from the processor ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RecallReward, AveragePrecisionReward])
def test_a_reward_takes_its_sizes_from_the_processor_or_has_the_same(tmp_path, kind):
    parts, _, _ = detection()
    reward = kind()
    tuned = trainer(tmp_path, [reward, kind(32, 3)], **parts)
    assert (reward.num_bins, tuned.reward.functions[0].num_bins, tuned.reward.functions[0].num_labels) == (None, 32, 3)
    metrics = tuned.evaluate()
    assert metrics[f"eval_rewards/{kind.__name__}/mean"] == metrics[f"eval_rewards/{kind.__name__}_2/mean"]
    for sizes, told in (
        ((1000, 3), "num_bins=1000, but the processor has num_bins=32"),
        ((32, 80), "num_labels=80, but the processor"),
    ):
        for given in (kind(*sizes), functools.partial(kind(*sizes))):
            with pytest.raises(ValueError, match=f"{kind.__name__} has {told}"):
                trainer(tmp_path, given, **parts)
    with pytest.raises(ValueError, match="does not know its num_bins and num_labels"):
        kind()(completion_ids=[[3]], references=[{"target_ids": [3]}])
    with pytest.raises(ValueError, match=f"{kind.__name__} needs num_bins, which TextProcessor does not have"):
        trainer(tmp_path, kind())


def test_every_size_that_repeats_one_of_the_processor_is_compared_with_it(tmp_path):
    parts, _, _ = detection()
    with pytest.raises(ValueError, match="class_counts has 2 numbers, but there are 3 classes"):
        trainer(tmp_path, AveragePrecisionReward(class_counts=[1, 2]), **parts)
    with pytest.raises(ValueError, match="detection_reward has num_bins=64, but the processor has num_bins=32"):
        trainer(tmp_path, evaluate.load(metric_path("detection_reward"), num_bins=64), **parts)
    with pytest.raises(ValueError, match="coco_map has num_labels=80, but the processor has num_labels=3"):
        trainer(tmp_path, RecallReward(), metric=functools.partial(coco_map, num_labels=80), **parts)
    trainer(tmp_path, RecallReward(), metric=[functools.partial(coco_map, num_labels=3)], **parts)

    parts, _, reward = panoptic()
    others = [{"id": 1, "name": "one", "isthing": 1}]
    module = evaluate.load(metric_path("panoptic_quality"), categories=others)
    for metric in (PanopticQuality(others), module, [module.compute]):
        with pytest.raises(
            ValueError, match=r"PanopticQuality has 1 categories and the processor has 3.*processor.categories"
        ):
            trainer(tmp_path, reward, metric=metric, **parts)

    parts, _, reward = captioning()
    end, frequency = test_captioning.END, reward.document_frequency
    reward = CiderReward(frequency)
    with pytest.raises(
        ValueError, match=f"CiderReward has eos_token_id={end + 1}, but the processor has eos_token_id={end}"
    ):
        trainer(tmp_path, CiderReward(frequency, eos_token_id=end + 1), **parts)
    tuned = trainer(tmp_path, reward, **parts)
    tuned.save_model(tmp_path)
    assert reward.eos_token_id is None and CiderReward.from_pretrained(tmp_path).eos_token_id == end


def test_mle_compares_its_metric_too(tmp_path):
    parts, _, _ = panoptic()
    args = VisionMLEConfig(str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="PanopticQuality has 1 categories"):
        VisionMLETrainer(
            parts["model"],
            args,
            eval_dataset=parts["rows"],
            processing_class=parts["processor"],
            completion_decoder=parts["decoder"],
            compute_metrics=PanopticQuality([{"id": 1, "isthing": 1}]),
        )
