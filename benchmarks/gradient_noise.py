"""How noisy the gradient of detection tuning is, from the same samples: with prefix rewards and without, and by confidence loss.

    python benchmarks/gradient_noise.py --situation incomplete --batches 60
    python benchmarks/gradient_noise.py --model runs/results/incomplete/tuned_map-lr0.0001-seed0/checkpoint-501

Each batch is 16 scenes with 4 samples each, drawn from an MLE model that comes along, or from another `--model`. The variance of its gradient
over the batches is summed over all parameters; the squared mean is estimated without that variance in it, so that it says
how much signal there is.
"""

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from measuring import report
from transformers import VisionEncoderDecoderModel

from vision_rl.models.log_prob_head import WeightedTokens, weigh_logits
from vision_rl.models.sampling import sample
from vision_rl.tasks.detection import AveragePrecisionReward, DetectionProcessor, RecallReward
from vision_rl.trainer.advantages import leave_one_out_advantages
from vision_rl.trainer.losses import reinforce_weights, token_target_weights


EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def gradients(model, pixel_values: torch.Tensor, ids: torch.Tensor, losses: dict[str, WeightedTokens]) -> dict:
    """The gradient `(parameters,)` of each loss, a mean over the completions `ids (R, T)`, of one teacher-forced pass."""
    decoder_input_ids = F.pad(ids[:, :-1], (1, 0), value=model.generation_config.decoder_start_token_id)
    logits = model(pixel_values=pixel_values, decoder_input_ids=decoder_input_ids).logits
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    taken = {}
    for name, tokens in losses.items():
        loss = weigh_logits(logits, tokens)[0] / len(ids)
        parts = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        taken[name] = torch.cat([part.flatten() for part in parts])
    return taken


def losses_of(reward, released, ids: torch.Tensor, references: list[dict], times: int) -> dict[str, WeightedTokens]:
    """REINFORCE with one advantage a sample and with one a token, and the confidence losses, each as tuning weighs it."""
    output = reward(completion_ids=ids.tolist(), references=references)
    rewards = torch.tensor(output.rewards).view(-1, times)
    returns = rewards[..., None] - output.prefix_rewards.view(*rewards.shape, -1)
    mask = torch.ones_like(ids)
    losses = {
        "a sample": reinforce_weights(ids, mask, leave_one_out_advantages(rewards).flatten()),
        "a token": reinforce_weights(ids, mask, leave_one_out_advantages(returns).flatten(0, 1)),
    }
    if output.token_targets is not None:
        for name, one in (("vocabulary", released), ("candidates", reward)):
            targets = one(completion_ids=ids.tolist(), references=references).token_targets
            losses[f"confidences, {name}"] = token_target_weights(targets, targets.weight * ids.shape[1])
    return losses


def noise(gradients: list[torch.Tensor]) -> dict[str, float]:
    stacked = torch.stack(gradients)
    variance = stacked.var(0).sum().item()
    return {"variance": variance, "squared mean": stacked.mean(0).square().sum().item() - variance / len(stacked)}


def main(situation: str, batches: int, images: int, times: int, model_folder: str | None = None) -> list[dict]:
    sys.path.insert(0, str(EXPERIMENTS))
    from detection_scenes import situation_scenes

    torch.manual_seed(0)
    folder = EXPERIMENTS / "checkpoints" / f"detection-{situation}"
    model = VisionEncoderDecoderModel.from_pretrained(model_folder or folder).eval()
    processor = DetectionProcessor.from_pretrained(folder)
    scenes = situation_scenes(situation, "train", batches * images)
    sizes = (processor.num_bins, processor.num_labels)
    counts = processor.count_classes(scenes)
    released = AveragePrecisionReward(*sizes, class_counts=counts, confidence_among="vocabulary")
    rewards = {"recall": RecallReward(*sizes), "map": AveragePrecisionReward(*sizes, class_counts=counts)}
    found: dict[tuple[str, str], list[torch.Tensor]] = {}
    for start in range(0, batches * images, images):
        rows = [scenes[i] for i in range(start, start + images)]
        pixel_values = processor(images=[row["image"] for row in rows])["pixel_values"]
        references = [reference for reference in processor.get_references(rows) for _ in range(times)]
        ids = sample(model, pixel_values, times, max_completion_length=processor.completion_length).completion_ids
        repeated = pixel_values.repeat_interleave(times, dim=0)
        for name, reward in rewards.items():
            losses = losses_of(reward, released, ids.flatten(0, 1), references, times)
            for loss, gradient in gradients(model, repeated, ids.flatten(0, 1), losses).items():
                found.setdefault((name, loss), []).append(gradient)
    return [{"reward": reward, "loss": loss, **noise(each)} for (reward, loss), each in found.items()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--situation", default="incomplete", choices=["incomplete", "crowded"])
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--times", type=int, default=4, help="samples an image")
    parser.add_argument("--model", dest="model_folder", help="of the situation; default: its MLE model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report("gradient_noise", main(**vars(options)))
