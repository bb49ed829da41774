"""The learning pass of reward tuning: each image encoded once a step, no logits of all tokens, nothing in vain."""

from collections import defaultdict

import torch
import torch.nn.functional as F

from vision_rl.models.completions import SampledCompletions
from vision_rl.models.log_prob_head import FusedHead, WeightedTokens, can_be_fused, weigh_logits
from vision_rl.models.special_ids import special_ids
from vision_rl.models.token_draw import policy_logits
from vision_rl.models.unwrapping import evaluation_mode, is_vision_encoder_decoder
from vision_rl.trainer.reward_config import VisionRewardConfig
from vision_rl.trainer.timing import StepClock
from vision_rl.trainer.vision_trainer import VisionTrainer


class TeacherForcedTrainer(VisionTrainer):
    """The half of `VisionRewardTrainer` that reads completions again, with gradient."""

    args: VisionRewardConfig
    temperature: float

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._clock = StepClock(self.args.device)
        self._recorded: dict[str, list[torch.Tensor]] = defaultdict(list)  # on this rank, in this update step
        self._fuses_head: bool | None = None  # found out at the first pass

    def _encode(self, inputs: dict) -> dict:
        """The batch with `encoder_outputs (B, N, d)`: its images encoded once and with gradient, to sample and to learn.

        Only where both see the same encoder, so without dropout, and where a rank holds all of its weights.
        """
        policy = self.bare(self.model_wrapped)
        shared = is_vision_encoder_decoder(policy) and self.args.disable_dropout and not self._gathers_weights()
        if not shared or "encoder_outputs" in inputs:
            return inputs
        self._clock.enter("encode")
        # A context of its own: autocast keeps the weights it has cast, and those cast without gradient have none later.
        with self.accelerator.autocast():
            encoded = policy.encoder(pixel_values=inputs["pixel_values"], return_dict=True).last_hidden_state
        return {**inputs, "encoder_outputs": encoded}

    def _weighted_sum(
        self, model, inputs: dict, completions: SampledCompletions, tokens: WeightedTokens
    ) -> torch.Tensor:
        """The loss `sum(weights * log p)` of `tokens` of the `B*L` sequences `completions (B, L, T)`.

        Images without a weight, such as those whose samples all got the same reward, are not decoded, and neither is
        what lies behind the last weight: the gradient stays the same.
        """
        tokens = tokens.nonzero()
        ids = completions.completion_ids[:, :, : int(tokens.positions.max()) + 1]
        name = "encoder_outputs" if "encoder_outputs" in inputs else "pixel_values"
        images = {name: inputs[name]}
        learning = (tokens.rows // ids.shape[1]).unique()  # (B',)
        kept = tokens
        if len(learning) < len(ids):
            rows = torch.arange(ids.shape[0] * ids.shape[1], device=ids.device).view(ids.shape[:2])[learning]
            kept = tokens.of_rows(rows.flatten())
            ids, images = ids[learning], {name: inputs[name].index_select(0, learning)}
        loss, logps = self._teacher_forced(model, images, ids, kept)
        self._record_difference(logps, completions, tokens)
        return loss

    def _teacher_forced(
        self, model, images: dict, completion_ids: torch.Tensor, tokens: WeightedTokens
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss and each `log p (E,)`, by one pass over `completion_ids (B, L, T)`; each image is encoded once."""
        policy = self.bare(model)
        special = special_ids(policy)
        if not is_vision_encoder_decoder(policy):
            images = {name: value.repeat_interleave(completion_ids.shape[1], dim=0) for name, value in images.items()}
        completion_ids = completion_ids.flatten(0, 1)  # (B*L, T)
        decoder_input_ids = F.pad(completion_ids[:, :-1], (1, 0), value=special.decoder_start)
        inputs = {**self.model_inputs(images), "decoder_input_ids": decoder_input_ids, "use_cache": False}
        if self._fuses_head is None:
            self._fuses_head = self._can_fuse_head(policy, images)
        if self._fuses_head:
            head = FusedHead(policy.get_output_embeddings(), self.temperature, special.suppressed)
            with head.loss_of(tokens):
                return model(**inputs).logits, head.logps
        return weigh_logits(policy_logits(model(**inputs).logits, self.temperature, special.suppressed), tokens)

    def _can_fuse_head(self, policy, images: dict) -> bool:
        """Whether the head may compute the loss, asked once; what is compiled, or in float16, takes the plain way."""
        if not is_vision_encoder_decoder(policy) or self.args.torch_compile or self.args.fp16:
            return False
        inputs = self.model_inputs({name: value[:1] for name, value in images.items()})
        start = torch.full((1, 1), special_ids(policy).decoder_start, device=self.args.device)
        with evaluation_mode(policy), self.accelerator.autocast():
            return can_be_fused(policy, {**inputs, "decoder_input_ids": start})

    def _record_difference(self, logps: torch.Tensor, completions: SampledCompletions, tokens: WeightedTokens) -> None:
        """How far the learned policy is from the sampled one: about 0 unless dropout or precision part them."""
        places = (tokens.rows, tokens.positions)
        drawn = completions.completion_ids.flatten(0, 1)[places] == tokens.ids
        difference = (logps - completions.per_token_logps.flatten(0, 1)[places]).abs().masked_fill(~drawn, 0.0)
        self._recorded["difference"].append(difference.max()[None])
