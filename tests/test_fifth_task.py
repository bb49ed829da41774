"""A new task needs a processor, a reward and a metric, and nothing in the library changes: here, counting bright squares."""

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from tiny import SIZE, image_processor, tiny_model
from transformers import BatchFeature

from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionProcessor, VisionRewardConfig, VisionRewardTrainer


# --- the task: under 60 lines ---------------------------------------------------------------------------------------
class CountingProcessor(VisionProcessor):
    """A picture to the number of bright squares in it: one token, id = count + 1; id 0 starts the decoder."""

    target_columns = ("count",)
    vocab_size = 6

    def __init__(self, image_processor):
        super().__init__(image_processor)

    def __call__(self, images, seeds=None, count=None):
        batch = {"pixel_values": self.image_processor(images, return_tensors="pt")["pixel_values"]}
        if count is not None:
            batch["labels"] = torch.tensor([[c + 1] for c in count])
        return BatchFeature(batch)

    def batch_decode(self, sequences, **kwargs):
        return [ids[0] - 1 for ids in sequences]


def closeness_reward(completions, references, **kwargs):
    return [1.0 - abs(c - r) / 4 for c, r in zip(completions, references, strict=True)]


def counting_error(predictions, references):
    return {"mean_absolute_error": float(np.mean(np.abs(np.subtract(predictions, references))))}


def squares(count, seed=0):
    rng = np.random.default_rng(seed)
    rows = {"image": [], "count": []}
    for _ in range(count):
        cells = rng.permutation(4)[: rng.integers(0, 5)]
        pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
        for cell in cells:
            pixels[16 * (cell // 2) + 2 : 16 * (cell // 2) + 14, 16 * (cell % 2) + 2 : 16 * (cell % 2) + 14] = 255
        rows["image"].append(Image.fromarray(pixels))
        rows["count"].append(len(cells))
    return Dataset.from_dict(rows)


# --------------------------------------------------------------------------------------------------------------------


def test_a_fifth_task_is_pretrained_and_tuned_without_touching_the_library(tmp_path):
    model = tiny_model(vocab_size=6, end=None)
    model.generation_config.suppress_tokens = [0]  # the start token is no count
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
    mle = VisionMLETrainer(model, VisionMLEConfig(str(tmp_path), max_steps=20, learning_rate=3e-3, **shared), **parts)
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
