"""A new task needs a processor, a reward and a metric, and no change in the library. Here: counting bright squares."""

from counting_task import CountingProcessor, closeness_reward, counting_error, squares
from PIL import Image
from tiny import SIZE, image_processor, tiny_model

from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer


def test_a_fifth_task_is_pretrained_and_tuned_without_touching_the_library(tmp_path):
    model = tiny_model(vocab_size=6, end=None)
    model.generation_config.suppress_tokens = [0]  # the start token is not a count
    shared = {
        "per_device_train_batch_size": 16,
        "max_completion_length": 1,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    parts = {
        "train_dataset": squares(200),
        "eval_dataset": squares(50, seed=1),
        "processing_class": CountingProcessor(image_processor()),
        "compute_metrics": counting_error,
    }
    mle = VisionMLETrainer(model, VisionMLEConfig(str(tmp_path), max_steps=8, learning_rate=3e-3, **shared), **parts)
    untrained = mle.evaluate()["eval_mean_absolute_error"]
    mle.train()
    imitating = mle.evaluate()["eval_mean_absolute_error"]
    tune = VisionRewardConfig(str(tmp_path), max_steps=40, learning_rate=1e-3, num_generations=8, **shared)
    tuned = VisionRewardTrainer(model, closeness_reward, tune, **parts)
    tuned.train()
    rewards = [entry["reward"] for entry in tuned.state.log_history if "reward" in entry]
    assert imitating < untrained
    assert rewards[-1] > rewards[0]
    assert tuned.evaluate()["eval_mean_absolute_error"] < imitating

    tuned.save_model(tmp_path / "all")
    processor = CountingProcessor.from_pretrained(tmp_path / "all")
    assert processor(images=[Image.new("RGB", (SIZE, SIZE))], count=[3])["labels"].tolist() == [[4]]
