"""Draw completions with their log-probabilities; each image is encoded and projected once, and a cache is kept.

The samples are exact: they come from softmax(logits / temperature) alone, by the inverse CDF of given uniforms.
transformers' `generate(do_sample=True)` by default draws from the 50 most likely tokens only, and returns no
log-probabilities; it is the fallback for encoder-decoders of a user's own (`vision_rl.models.served`).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel

from vision_rl.arguments import check_number
from vision_rl.models.completions import SampledCompletions, mask_to_the_end
from vision_rl.models.decoding import Decoding
from vision_rl.models.generate_fallback import sample_with_generate
from vision_rl.models.lengths import completion_length
from vision_rl.models.served import encode, projected
from vision_rl.models.shared_images import images_for, share_images
from vision_rl.models.special_ids import special_ids
from vision_rl.models.unwrapping import (
    base_model,
    call_inside_forward,
    decoder_of,
    evaluation_mode,
    is_served,
)
from vision_rl.models.writer import Work, writer_of


def sample(
    model: PreTrainedModel,
    pixel_values: Tensor | None = None,
    num_generations: int = 1,
    *,
    prompt_ids: Tensor | None = None,
    encoder_outputs: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    max_completion_length: int | None = None,
    do_sample: bool = True,
    temperature: float = 1.0,
    uniforms: Tensor | None = None,
    watched_ids: Sequence[int] = (),
    synced: bool = False,
    logits_processor: LogitsProcessorList | None = None,
) -> SampledCompletions:
    """Draw `num_generations` completions for each image from the model's own distribution, without gradient.

    Dropout is off while sampling, whatever the model's mode. The special ids and the suppressed ids
    (`suppress_tokens`) come from `model.generation_config`; without an end token every completion has
    `max_completion_length` tokens.

    Args:
        model: a model of `vision_rl.models.served` (also inside PEFT), or a user's own encoder-decoder, which is
            sampled through `generate`.
        pixel_values: `(B, C, H, W)`; for Pix2Struct its flattened patches `(B, N, 2 + pixels)`.
        num_generations: G.
        prompt_ids: `(B, P)`, the ids that Florence-2 reads beside the images, its image tokens included.
        encoder_outputs: `(B, N, d)`, the encoder's last hidden state, in place of `pixel_values` and `prompt_ids`.
        encoder_attention_mask: `(B, N)`, 0 where `encoder_outputs` are padding; needed only if some are.
        max_completion_length: largest number of tokens of a completion; default: `generation_config.max_new_tokens`,
            else the number of the decoder's positions, at most 128.
        do_sample: if `False`, the most likely token is taken at each step.
        temperature: divides the logits; `per_token_logps` belong to the tempered distribution.
        uniforms: `(B, G, >= max_completion_length)` in [0, 1), the random numbers; default: torch's global generator
            draws them.
        watched_ids: C ids whose log-probabilities are kept at every position, drawn or not (a score may need them).
        logits_processor: transformers' means to change the choice of greedy decoding, such as a processor's
            `logits_processor`. Log-probabilities stay the model's own.
        synced: whether to go on until every rank is done, as ZeRO-3 and FSDP need, which gather weights at each
            forward.

    Returns:
        `completion_ids`, `completion_mask` and `per_token_logps`, each `(B, G, T)`, where T is the length of the
        longest completion (of all ranks if `synced`); with `watched_ids` also `watched_logps (B, G, T, C)`.

    Raises:
        ValueError: for more tokens than the decoder has positions, for a missing special id, for a `temperature` that is
            not positive, and for a `logits_processor` while sampling.
        FloatingPointError: for logits that are NaN.
    """
    if logits_processor and do_sample:
        raise ValueError(
            "A logits_processor needs do_sample=False, because samples come from the model's own distribution."
        )
    check_number("temperature", temperature)
    if temperature <= 0:
        raise ValueError(
            f"temperature must be positive, got {temperature}: for the likeliest completion pass do_sample=False."
        )
    logits_processor = logits_processor or None
    length = completion_length(model, max_completion_length)
    policy: Any = base_model(model)
    if not is_served(model):
        if pixel_values is None:
            raise ValueError(
                f"{type(policy).__name__} is sampled through generate, which takes only pixel_values: pass them."
            )
        return sample_with_generate(
            policy, pixel_values, num_generations, length, do_sample, temperature, watched_ids, logits_processor
        )
    share_images(model)
    ids = special_ids(model)

    def write() -> Decoding:
        images, mask = encoder_outputs, encoder_attention_mask  # (B, N, d), (B, N)
        if images is None:
            read = {"pixel_values": pixel_values, "prompt_ids": prompt_ids}
            encoded = encode(policy, {name: value for name, value in read.items() if value is not None})
            images, mask = encoded["encoder_outputs"], encoded.get("encoder_attention_mask")
        images = projected(policy, images)
        num_rows, device = len(images) * num_generations, images.device
        table = None
        if do_sample:
            new = (len(images), num_generations, length)
            table = (torch.rand(new, device=device) if uniforms is None else uniforms).flatten(0, 1)  # (B*G, length)
        decoder = decoder_of(policy)
        images = images_for(decoder, images, num_rows)
        mask = None if mask is None else images_for(decoder, mask, num_rows)
        autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        work = Work(
            num_images=len(images),
            num_rows=num_rows,
            length=length,
            start=ids.decoder_start,
            pad=ids.pad,
            ends=tuple(ids.ends),
            suppressed=tuple(ids.suppressed),
            do_sample=do_sample,
            temperature=temperature,
            watched_ids=tuple(watched_ids),
            device=device,
            autocast=autocast,
            synced=synced,
            logits_processor=logits_processor,
        )
        return writer_of(decoder, work).write(images, table, mask)

    with evaluation_mode(policy), torch.no_grad():
        return _completions(call_inside_forward(model, write), num_generations, synced)


def _completions(decoding: Decoding, num_generations: int, synced: bool) -> SampledCompletions:
    """Copy the completions out of the buffers, which the next rollout overwrites, and cut them to the longest one."""
    mask = mask_to_the_end(decoding.ids, decoding.ends)
    longest = mask.sum(-1).max()
    if synced and dist.is_initialized():
        dist.all_reduce(longest, dist.ReduceOp.MAX)
    fields = [decoding.ids, mask, decoding.logps, *([decoding.watched_logps] if len(decoding.watched) else [])]
    fields = [field[:, :longest].clone().unflatten(0, (-1, num_generations)) for field in fields]
    completions = SampledCompletions(*fields)
    if completions.per_token_logps.isnan().any():
        raise FloatingPointError(
            "The model's logits are NaN: training has diverged, or its weights are broken. Start a new run "
            "from an earlier checkpoint, given as `model`, with a lower learning_rate."
        )
    return completions
