"""Sample completions through transformers' `generate`, for encoder-decoders that `sample` cannot draw from itself."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from vision_rl.models.completions import SampledCompletions, mask_to_the_end
from vision_rl.models.special_ids import special_ids
from vision_rl.models.token_draw import policy_logits
from vision_rl.models.unwrapping import evaluation_mode


def sample_with_generate(
    policy: Any,
    pixel_values: Tensor,
    num_generations: int,
    length: int,
    do_sample: bool = True,
    temperature: float = 1.0,
    watched_ids: Sequence[int] = (),
    logits_processor: LogitsProcessorList | None = None,
) -> SampledCompletions:
    """Draw completions from the distribution that `sample` draws from, but with torch's global generator.

    The result depends on the batch, because there is no table of uniforms. The GenerationConfig is a new one, because
    a model's own may hold top_k=50 or forced tokens, which sampling would follow and scoring would not know of. The
    arguments are those of `vision_rl.models.sampling.sample`; `length` is its `max_completion_length`.
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
        own = policy.generation_config
        policy.generation_config = GenerationConfig()  # its own would fill what `config` does not set
        try:
            written = policy.generate(
                pixel_values=pixel_values, generation_config=config, logits_processor=logits_processor
            )
        finally:
            policy.generation_config = own
        completion_ids = written[:, 1:].clone()
        mask = mask_to_the_end(completion_ids, torch.tensor(ids.ends, device=completion_ids.device))
        starts = torch.full_like(completion_ids[:, :1], ids.decoder_start)
        logits = policy(
            pixel_values=pixel_values.repeat_interleave(num_generations, dim=0),
            decoder_input_ids=torch.cat([starts, completion_ids[:, :-1]], dim=1),
        ).logits
        logps = policy_logits(logits, temperature, ids.suppressed).log_softmax(-1)
        watched = [logps[..., list(watched_ids)]] if watched_ids else []
        logps = logps.gather(-1, completion_ids[..., None]).squeeze(-1).masked_fill(mask == 0, 0.0)
    fields = (completion_ids, mask, logps, *watched)
    return SampledCompletions(*(field.unflatten(0, (-1, num_generations)) for field in fields))
