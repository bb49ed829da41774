"""Drawing completions: each image is encoded and projected once, a cache is kept, log-probabilities too.

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
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, VisionEncoderDecoderModel

from vision_rl.models.decode_step import Clock, decode_step
from vision_rl.models.decoding import Decoding, policy_logits, way_of_running
from vision_rl.models.shared_images import images_for, share_images_of


DEFAULT_LENGTH = 128


@dataclass(frozen=True)
class SampledCompletions:
    """G completions of each image; the mask is 1 up to and including the end token, behind it ids are the pad.

    Unpacks into its first three: `completion_ids, completion_mask, per_token_logps = sample(...)`.
    """

    completion_ids: torch.Tensor  # (B, G, T) int64
    completion_mask: torch.Tensor  # (B, G, T) int64
    per_token_logps: torch.Tensor  # (B, G, T) float32, 0 behind the end
    watched_logps: torch.Tensor | None = None  # (B, G, T, C) float32, of the `watched_ids`, 0 behind the end

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
        `completion_ids`, `completion_mask` and `per_token_logps`, each `(B, G, T)`, T the longest completion (of all
        ranks if `synced`); with `watched_ids` also `watched_logps (B, G, T, C)`.
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
    share_images(model)
    with evaluation_mode(policy), torch.no_grad():
        images = encode(policy, pixel_values, encoder_outputs)  # (B, N, d)
        num_rows, device = len(images) * num_generations, images.device
        if not do_sample:
            uniforms = None
        elif uniforms is None:
            uniforms = torch.rand(len(images), num_generations, length, device=device)
        decoder = decoder_of(policy)
        images = images_for(decoder, images, num_rows)
        step = decode_step(decoder, images, Clock(length, device), synced)
        decoding = Decoding(
            step,
            len(images),
            num_rows,
            start=ids.decoder_start,
            pad=ids.pad,
            ends=torch.tensor(ids.ends, dtype=torch.long, device=device),
            suppressed=torch.tensor(ids.suppressed, dtype=torch.long, device=device),
            temperature=temperature,
            uniforms=None if uniforms is None else uniforms.flatten(0, 1),
            watched=torch.tensor(watched_ids, dtype=torch.long, device=device),
        )
        decoding.write(way_of_running(step, device), synced)
    mask = _mask_to_the_end(decoding.ids, ids.ends)
    longest = mask.sum(-1).max()
    if synced and dist.is_initialized():
        dist.all_reduce(longest, dist.ReduceOp.MAX)
    fields = [decoding.ids, mask, decoding.logps, *([decoding.watched_logps] if len(watched_ids) else [])]
    fields = [field[:, :longest].contiguous().unflatten(0, (-1, num_generations)) for field in fields]
    completions = SampledCompletions(*fields)
    if completions.per_token_logps.isnan().any():
        raise FloatingPointError(
            "The model's logits are NaN: training has diverged, or its weights are broken. Go back to a checkpoint and "
            "lower the learning rate."
        )
    return completions


def _mask_to_the_end(completion_ids: torch.Tensor, ends: list[int]) -> torch.Tensor:
    """1 up to and including the first end token `(rows, T)`."""
    ended = torch.isin(completion_ids, torch.tensor(ends, device=completion_ids.device))
    return (ended.cumsum(-1) - ended.long() == 0).long()


# --- the parts of the model -----------------------------------------------------------------------------------------


def base_model(model: Any) -> Any:
    """The transformers model itself, out of what `torch.compile` and PEFT have put around it."""
    model = getattr(model, "_orig_mod", model)
    return model.get_base_model() if isinstance(model, PeftModel) else model


def decoder_of(policy: VisionEncoderDecoderModel) -> Any:
    """The decoder as it is trained: of PEFT's `modules_to_save=["decoder"]` the copy, not what holds it."""
    decoder: Any = policy.decoder
    if not isinstance(decoder, ModulesToSaveWrapper):
        return decoder
    active = [] if decoder.disable_adapters else decoder.active_adapters
    return decoder.modules_to_save[active[0]] if active else decoder.original_module


def serves(model: nn.Module) -> bool:
    """Whether `sample` draws itself (exact, reproducible); otherwise it falls back to `generate`."""
    return isinstance(base_model(model), VisionEncoderDecoderModel)


def encode(
    policy: VisionEncoderDecoderModel, pixel_values: torch.Tensor | None, encoder_outputs: torch.Tensor | None = None
) -> torch.Tensor:
    """The images `(B, N, d)` as the decoder's cross-attention reads them."""
    if encoder_outputs is None:
        encoder_outputs = policy.encoder(pixel_values=pixel_values, return_dict=True).last_hidden_state
    encoder_outputs = encoder_outputs.to(policy.dtype)  # a data set may hold them in float32
    return policy.enc_to_dec_proj(encoder_outputs) if projects_images(policy) else encoder_outputs


def projects_images(policy: VisionEncoderDecoderModel) -> bool:
    """Whether the model maps the encoder's width to the decoder's: the condition of its own forward."""
    encoder, decoder = policy.encoder.config, policy.decoder.config
    return encoder.hidden_size != decoder.hidden_size and getattr(decoder, "cross_attention_hidden_size", None) is None


def share_images(model: PreTrainedModel | PeftModel) -> None:
    """Let `model(pixel_values (B, ...), decoder_input_ids (B*G, T))` work: an image is encoded once for its G rows.

    Learning stays one forward call of the whole model, as DDP, DeepSpeed and FSDP need it. Our decoder reads an image
    once for its G rows by itself, transformers' get hooks (`vision_rl.models.shared_images`). Calling it twice changes
    nothing.
    """
    share_images_of(decoder_of(base_model(model)))


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
    rows = getattr(policy.config.get_text_config(decoder=True), "max_position_embeddings", None)
    uncounted = uncounted_id(policy)
    return rows if rows is None or uncounted is None else rows - uncounted - 1


def uncounted_id(policy: PreTrainedModel) -> int | None:
    """The id that the decoder leaves out when it counts positions: RoBERTa and its kin, and TrOCR with sine positions.

    A first token is counted by the tokens in the cache there, a later one by those in the row. Both agree unless this
    id, the padding of the embedding, stands among them.
    """
    decoder = decoder_of(policy) if isinstance(policy, VisionEncoderDecoderModel) else policy
    for module in decoder.modules():
        if hasattr(type(module), "create_position_ids_from_input_ids"):
            return int(module.padding_idx)  # type: ignore[arg-type]
    return None


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
        mask = _mask_to_the_end(completion_ids, ids.ends)
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
