"""Drawing completions: each image is encoded once, the decoder runs with a KV cache, log-probabilities are kept.

The samples are exact: they come from softmax(logits / temperature) and from nothing else, by inverse CDF of given
uniforms. transformers' `generate(do_sample=True)` would draw from the 50 most likely tokens unless told otherwise,
and keeps no log-probabilities; it is the fallback for models that are no `VisionEncoderDecoderModel`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import nn
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    PreTrainedModel,
    VisionEncoderDecoderModel,
)

from vision_rl.models.decoder import VisionDecoderForCausalLM


DEFAULT_LENGTH = 128


@dataclass(frozen=True)
class SampledCompletions:
    """G completions of each image; the mask is 1 up to and including the end token, behind it ids are the pad.

    Unpacks into its first three: `completion_ids, completion_mask, per_token_logps = sample(...)`.
    """

    completion_ids: torch.Tensor  # (B, G, T) int64
    completion_mask: torch.Tensor  # (B, G, T) int64
    per_token_logps: torch.Tensor  # (B, G, T) float32, 0 behind the end
    watched_logps: torch.Tensor | None = None  # (B, G, T, C) float32, of the `watched_ids`

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter((self.completion_ids, self.completion_mask, self.per_token_logps))

    def first(self, count: int) -> "SampledCompletions":
        """The first `count` completions of each image."""
        watched = None if self.watched_logps is None else self.watched_logps[:, :count]
        ids, mask, logps = (field[:, :count] for field in self)
        return SampledCompletions(ids, mask, logps, watched)


def sample(
    model: PreTrainedModel,
    pixel_values: torch.Tensor | None = None,
    num_generations: int = 1,
    *,
    encoder_outputs: torch.Tensor | None = None,
    max_completion_length: int | None = None,
    do_sample: bool = True,
    temperature: float = 1.0,
    uniforms: torch.Tensor | None = None,
    watched_ids: Sequence[int] = (),
    synced: bool = False,
) -> SampledCompletions:
    """Draw `num_generations` completions for each image from the model's own distribution, without gradient.

    Dropout is off while sampling whatever the model's mode. The special ids and the forbidden ones
    (`suppress_tokens`) are those of `model.generation_config`; without an end token every completion has
    `max_completion_length` tokens.

    Args:
        model: a `VisionEncoderDecoderModel` (also inside PEFT); other encoder-decoders go through `generate`.
        pixel_values: `(B, C, H, W)`.
        num_generations: G.
        encoder_outputs: `(B, N, d)`, the encoder's last hidden state, in place of `pixel_values`.
        max_completion_length: most tokens a completion; default: `generation_config.max_new_tokens`, else 128.
        do_sample: `False` takes the most likely token each time.
        temperature: divides the logits; `per_token_logps` are those of the tempered distribution.
        uniforms: `(B, G, >= max_completion_length)` in [0, 1): the randomness; default: torch's global generator.
        watched_ids: C ids whose log-probabilities are kept at every position, drawn or not (a score may need them).
        synced: go on until every rank is done, as ZeRO-3 and FSDP need, which gather weights at each forward.

    Returns:
        `completion_ids`, `completion_mask` and `per_token_logps`, each `(B, G, T)`, T the longest completion; with
        `watched_ids` also `watched_logps (B, G, T, C)`.
    """
    length = completion_length(model, max_completion_length)
    policy: Any = base_model(model)
    if not serves(model):
        if pixel_values is None:
            raise ValueError(f"{type(policy).__name__} is sampled through generate, which takes pixel_values only.")
        return _sample_with_generate(
            policy, pixel_values, num_generations, length, do_sample, temperature, list(watched_ids)
        )
    ids = special_ids(model)
    with evaluation_mode(policy), torch.no_grad():
        images = encode(policy, pixel_values, encoder_outputs)  # (B, N, d)
        num_rows = len(images) * num_generations
        if not do_sample:
            uniforms = None
        elif uniforms is None:
            uniforms = torch.rand(len(images), num_generations, length, device=images.device)
        images = images_for(policy.decoder, images, num_rows)
        tokens = torch.full((num_rows, 1), ids.decoder_start, device=images.device)
        done = torch.zeros(num_rows, dtype=torch.bool, device=images.device)
        ends = torch.tensor(ids.ends, device=images.device)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        watched = list(watched_ids)
        columns = []
        for t in range(length):
            outputs = policy.decoder(
                input_ids=tokens, encoder_hidden_states=images, past_key_values=cache, use_cache=True, return_dict=True
            )
            logits = policy_logits(outputs.logits[:, -1], temperature, ids.suppressed)  # (B*G, V)
            logps = logits.log_softmax(-1)
            drawn = logps.argmax(-1) if uniforms is None else inverse_cdf(logps.exp(), uniforms.flatten(0, 1)[:, t])
            logp = logps.gather(-1, drawn[:, None]).squeeze(-1).masked_fill(done, 0.0)
            drawn = drawn.masked_fill(done, ids.pad)
            columns.append((drawn, (~done).long(), logp, *([logps[:, watched]] if watched else [])))
            done = done | torch.isin(drawn, ends)
            if ids.ends and _all_done(done, synced):
                break
            tokens = drawn[:, None]
    stacked = (torch.stack(column, dim=1).unflatten(0, (-1, num_generations)) for column in zip(*columns, strict=True))
    completions = SampledCompletions(*stacked)
    if completions.per_token_logps.isnan().any():
        raise FloatingPointError(
            "The model's logits are NaN: training has diverged, or its weights are broken. Go back to a checkpoint and "
            "lower the learning rate."
        )
    return completions


def policy_logits(
    logits: torch.Tensor, temperature: float = 1.0, suppress_tokens: list[int] | None = None
) -> torch.Tensor:
    """Logits `(..., V)` of the distribution that is sampled and learned: float32, tempered, forbidden ids at -inf."""
    logits = logits.float()
    if temperature != 1:
        logits = logits / temperature
    if suppress_tokens:
        logits = logits.index_fill(-1, torch.tensor(suppress_tokens, device=logits.device), float("-inf"))
    return logits


def inverse_cdf(probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The id `(R,)` whose share of the cumulated `probabilities (R, V)` the uniform `(R,)` falls into.

    An id of probability 0 is never drawn, and rows with NaN give some id.
    """
    cdf = probabilities.cumsum(-1)
    total = cdf[:, -1]
    # u * total may round up to the total itself, which no token reaches
    target = torch.minimum(uniforms.to(cdf) * total, torch.nextafter(total, torch.zeros_like(total)))
    drawn = torch.searchsorted(cdf, target[:, None], right=True).clamp(max=cdf.shape[-1] - 1)
    # a parallel cumsum may rise by a rounding error where a probability is 0
    impossible = probabilities.gather(-1, drawn) == 0
    return torch.where(impossible, probabilities.argmax(-1, keepdim=True), drawn).squeeze(-1)


# --- the parts of the model -----------------------------------------------------------------------------------------


def base_model(model: Any) -> Any:
    """The transformers model itself, out of what `torch.compile` and PEFT have put around it."""
    model = getattr(model, "_orig_mod", model)
    return model.get_base_model() if isinstance(model, PeftModel) else model


def serves(model: nn.Module) -> bool:
    """Whether `sample` draws itself (exact, reproducible); otherwise it falls back to `generate`."""
    return isinstance(base_model(model), VisionEncoderDecoderModel)


def encode(
    policy: VisionEncoderDecoderModel, pixel_values: torch.Tensor | None, encoder_outputs: torch.Tensor | None = None
) -> torch.Tensor:
    """The images `(B, N, d)` as the decoder's cross-attention reads them."""
    if encoder_outputs is None:
        encoder_outputs = policy.encoder(pixel_values=pixel_values, return_dict=True).last_hidden_state
    if projects_images(policy):
        encoder_outputs = policy.enc_to_dec_proj(encoder_outputs)
    return encoder_outputs


def projects_images(policy: VisionEncoderDecoderModel) -> bool:
    """Whether the model maps the encoder's width to the decoder's: the condition of its own forward."""
    encoder, decoder = policy.encoder.config, policy.decoder.config
    return encoder.hidden_size != decoder.hidden_size and getattr(decoder, "cross_attention_hidden_size", None) is None


def images_for(decoder: nn.Module, images: torch.Tensor, num_rows: int) -> torch.Tensor:
    """`images (B, N, d)` as `decoder` wants them for `num_rows` completions: ours takes each image once, others G."""
    if isinstance(decoder, VisionDecoderForCausalLM) or len(images) == num_rows:
        return images
    return images.repeat_interleave(num_rows // len(images), dim=0)


def share_images(model: PreTrainedModel | PeftModel) -> None:
    """Let `model(pixel_values (B, ...), decoder_input_ids (B*G, T))` work: an image is encoded once for its G rows.

    Our decoder does this itself. Others get a hook that repeats the encoded images, so that learning stays one
    forward call of the whole model, as DDP, DeepSpeed and FSDP need it. Calling it twice changes nothing.
    """
    decoder = base_model(model).decoder
    if not isinstance(decoder, VisionDecoderForCausalLM) and _repeat_images not in decoder._forward_pre_hooks.values():
        decoder.register_forward_pre_hook(_repeat_images, with_kwargs=True)


def _repeat_images(decoder: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    images, input_ids = kwargs.get("encoder_hidden_states"), kwargs.get("input_ids")
    if images is not None and input_ids is not None:
        kwargs["encoder_hidden_states"] = images_for(decoder, images, len(input_ids))
    return args, kwargs


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off inside, every module's own mode back afterwards, also after an error."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


# --- special ids ----------------------------------------------------------------------------------------------------


class SpecialIds(NamedTuple):
    decoder_start: int
    pad: int
    ends: list[int]
    suppressed: list[int]


def special_ids(model: nn.Module) -> SpecialIds:
    """The ids that sampling needs, read from `model.generation_config`. Raises `ValueError` for one that is missing."""
    config = base_model(model).generation_config
    start, pad, end = config.decoder_start_token_id, config.pad_token_id, config.eos_token_id
    for name, value in (("decoder_start_token_id", start), ("pad_token_id", pad)):
        if value is None:
            raise ValueError(
                f"The model has no {name}: set model.generation_config.{name} and model.config.{name} "
                "(vision_rl.models.vision_encoder_decoder does both)."
            )
    ends = [] if end is None else [end] if isinstance(end, int) else list(end)
    return SpecialIds(start, pad, ends, list(config.suppress_tokens or []))


def completion_length(model: nn.Module, max_completion_length: int | None) -> int:
    """The most tokens a completion may have: as given, else `generation_config.max_new_tokens`, else what fits, to 128."""
    if max_completion_length is not None:
        return max_completion_length
    policy = base_model(model)
    if policy.generation_config.max_new_tokens is not None:
        return policy.generation_config.max_new_tokens
    return min(DEFAULT_LENGTH, num_positions(policy) or DEFAULT_LENGTH)


def num_positions(policy: PreTrainedModel) -> int | None:
    """How many tokens the decoder's position embeddings reach, if it has such a limit."""
    return getattr(policy.config.get_text_config(decoder=True), "max_position_embeddings", None)


def _all_done(done: torch.Tensor, synced: bool) -> bool:
    if synced and dist.is_initialized():
        unfinished = (~done.all()).int()
        dist.all_reduce(unfinished)
        return unfinished.item() == 0
    return bool(done.all())


# --- the fallback ---------------------------------------------------------------------------------------------------


def _sample_with_generate(
    policy, pixel_values, num_generations, length, do_sample, temperature, watched
) -> SampledCompletions:
    """The same distribution through `generate`, whose randomness is torch's: not the table's, so not batch-invariant.

    A fresh GenerationConfig, because a model's own may hold top_k=50 or forced tokens, which sampling would follow
    and scoring would not know of.
    """
    ids = special_ids(policy)
    config = GenerationConfig(
        max_new_tokens=length,
        do_sample=do_sample,
        **({"temperature": temperature, "top_k": 0, "top_p": 1.0} if do_sample else {}),
        num_return_sequences=num_generations,
        decoder_start_token_id=ids.decoder_start,
        pad_token_id=ids.pad,
        eos_token_id=ids.ends or None,
        suppress_tokens=ids.suppressed or None,
    )
    with evaluation_mode(policy), torch.no_grad():
        completion_ids = policy.generate(pixel_values=pixel_values, generation_config=config)[:, 1:].clone()
        ended = torch.isin(completion_ids, torch.tensor(ids.ends, device=completion_ids.device))
        mask = (ended.cumsum(-1) - ended.long() == 0).long()  # 1 up to and including the first end
        starts = torch.full_like(completion_ids[:, :1], ids.decoder_start)
        logits = policy(
            pixel_values=pixel_values.repeat_interleave(num_generations, dim=0),
            decoder_input_ids=torch.cat([starts, completion_ids[:, :-1]], dim=1),
        ).logits
        logps = policy_logits(logits, temperature, ids.suppressed).log_softmax(-1)
        kept = [logps[..., watched]] if watched else []
        logps = logps.gather(-1, completion_ids[..., None]).squeeze(-1).masked_fill(mask == 0, 0.0)
    fields = (completion_ids, mask, logps, *kept)
    return SampledCompletions(*(field.unflatten(0, (-1, num_generations)) for field in fields))
