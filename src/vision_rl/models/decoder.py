"""The paper's decoder: a small causal transformer that looks at an image and writes tokens.

It is the decoder of big_vision's `models/proj/uvim/vtt.py`, with which arXiv 2302.08242 does every task, as a
transformers model to put inside `VisionEncoderDecoderModel`. No class of transformers has this mix: pre-LN, attention
without biases, learned positions, an untied output head with a bias. There is no dropout, as in the reference. The
decoder alone has no `generate`, which would mask a start token that is also the padding (both are 0 in the reference).
"""

from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Cache,
    DynamicCache,
    EncoderDecoderCache,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions

from vision_rl.compatibility import named, takes_either_name


@strict
class VisionDecoderConfig(PreTrainedConfig):
    """Sizes of a `VisionDecoderForCausalLM`; width and depth default to the paper's detection decoder.

    `cross_attention_hidden_size` is the encoder's width, if the width differs from `hidden_size`: keys and values are
    then projected from that width, as in the reference. If it is None and the encoder has another width,
    `VisionEncoderDecoderModel` adds a projection of its own. `pad_token_id` and `bos_token_id` are 0, as in the
    reference. Raises `ValueError` if `hidden_size` is no multiple of `num_attention_heads`.
    """

    model_type = "vision_decoder"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]

    vocab_size: int = 4097  # UViM: 4096 codes and the start token
    hidden_size: int = 768
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 1024
    layer_norm_eps: float = 1e-6
    hidden_act: str = "gelu_pytorch_tanh"
    cross_attention_hidden_size: int | None = None
    pad_token_id: int | None = 0
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = None
    is_decoder: bool = True
    add_cross_attention: bool = True
    use_cache: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} cannot be split among {self.num_attention_heads} attention heads: "
                "choose a multiple of num_attention_heads."
            )
        if self.tie_word_embeddings:
            raise ValueError("tie_word_embeddings must be False: the paper's decoder has a head of its own.")
        super().__post_init__(**kwargs)


class VisionDecoderAttention(nn.Module):
    """The four projections without bias that both self-attention and cross-attention have."""

    def __init__(self, config: VisionDecoderConfig, layer_idx: int, key_value_size: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(key_value_size, config.hidden_size, bias=False)
        self.v_proj = nn.Linear(key_value_size, config.hidden_size, bias=False)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (rows, T, width) -> (rows, heads, T, D)

    def join_heads(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)  # (rows, heads, T, D) -> (rows, T, width)


class VisionDecoderSelfAttention(VisionDecoderAttention):
    def forward(self, x: Tensor, mask: Tensor | None, cache: EncoderDecoderCache | None) -> Tensor:
        q, k, v = (self.split_heads(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if cache is not None:
            k, v = cache.self_attention_cache.update(k, v, self.layer_idx)  # (B*G, heads, S, D)
        # Where there is no mask, there is either one query, which sees all of the past, or no past.
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and x.shape[1] > 1)
        return self.out_proj(self.join_heads(x))


class VisionDecoderCrossAttention(VisionDecoderAttention):
    """Attention to an image: the tokens of its G rows are G*T queries on one copy of the image's keys and values."""

    def forward(
        self,
        x: Tensor,
        encoder_hidden_states: Tensor | None,
        mask: Tensor | None,
        cache: EncoderDecoderCache | None,
    ) -> Tensor:
        if cache is not None and cache.is_updated.get(self.layer_idx):
            cached: Any = cache.cross_attention_cache.layers[self.layer_idx]
            k, v = cached.keys, cached.values
        else:
            k, v = (self.split_heads(proj(encoder_hidden_states)) for proj in (self.k_proj, self.v_proj))
            if cache is not None:
                k, v = cache.cross_attention_cache.update(k, v, self.layer_idx)  # (B, heads, N, D)
                cache.is_updated[self.layer_idx] = True
        rows, length, width = x.shape
        q = self.split_heads(self.q_proj(x).reshape(k.shape[0], -1, width))  # (B, heads, G*T, D)
        x = self.join_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))  # (B, G*T, width)
        return self.out_proj(x.reshape(rows, length, width))


class VisionDecoderMLP(nn.Module):
    def __init__(self, config: VisionDecoderConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation_fn(self.fc1(x)))


class VisionDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: VisionDecoderConfig, layer_idx: int):
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.layer_norm1 = nn.LayerNorm(width, eps=eps)
        self.self_attn = VisionDecoderSelfAttention(config, layer_idx, width)
        self.layer_norm2 = nn.LayerNorm(width, eps=eps)
        self.cross_attn = VisionDecoderCrossAttention(config, layer_idx, config.cross_attention_hidden_size or width)
        self.layer_norm3 = nn.LayerNorm(width, eps=eps)
        self.mlp = VisionDecoderMLP(config)

    def forward(
        self,
        x: Tensor,
        encoder_hidden_states: Tensor | None,
        mask: Tensor | None = None,
        encoder_mask: Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
    ) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask, cache)
        x = x + self.cross_attn(self.layer_norm2(x), encoder_hidden_states, encoder_mask, cache)
        return x + self.mlp(self.layer_norm3(x))


class VisionDecoderForCausalLM(PreTrainedModel):
    """The paper's decoder: embeddings, blocks of self-attention, cross-attention and MLP, a last LayerNorm, a head."""

    config: VisionDecoderConfig
    config_class = VisionDecoderConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["VisionDecoderLayer"]
    _skip_keys_device_placement = ["cache", "past_key_values"]

    def __init__(self, config: VisionDecoderConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList([VisionDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a module as the reference does. The head is zero, so a new model finds all tokens equally likely.

        For a class that is not its own, transformers calls this method only for modules that hold parameters
        themselves. So an attention projection is told from a layer of an MLP by its missing bias, not by the module
        around it.
        """
        if module is self.lm_head:
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and module.bias is None:
            # LeCun normal as Flax draws it: cut at two standard deviations, and widened by what the cut takes away.
            # transformers' `lecun_normal_` widens too, but cuts at +-2.0, where nothing is left to cut: 14% too wide.
            std = module.in_features**-0.5 / 0.87962566103423978
            init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.normal_(module.bias, std=1e-6)
        elif module is self.embed_positions:
            init.normal_(module.weight, std=self.config.hidden_size**-0.5)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=1.0)
        else:
            super()._init_weights(module)

    @takes_either_name
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithCrossAttentions | tuple:
        """Compute the logits of the next token at every position.

        An image is encoded once, however many sequences are written about it: `encoder_hidden_states` has B rows,
        `input_ids` has B*G rows, and the G sequences of an image are adjacent. The cache holds the keys and values of
        an image once, too.

        Args:
            input_ids: (B*G, T), with the start token first. The alternative is `inputs_embeds` (B*G, T, hidden_size),
                token embeddings to which positions have not been added.
            attention_mask: (B*G, S), where S counts the cached tokens too; 0 hides a token. Padding on the right needs
                no mask.
            encoder_hidden_states: (B, N, width); may be left out once `cache` holds the images.
            encoder_attention_mask: (B, N); 0 hides a patch.
            position_ids: (B*G, T); by default positions count from the left, cached tokens and padding included.
                Sequences that are padded on the left therefore need `position_ids`.
            cache: an `EncoderDecoderCache`; a plain cache becomes the self-attention half of an `EncoderDecoderCache`.
                The argument's older name, `past_key_values`, is accepted too.
            use_cache: whether to make a cache if none is given; by default only outside of training.

        Returns:
            `logits` (B*G, T, vocab_size) and the cache, under the name that transformers gives it. With
            `output_hidden_states` also the input of each layer and of the head, each (B*G, T, hidden_size). The result
            is a tuple if `return_dict` is False.

        Raises:
            ValueError: for `output_attentions` (attention weights are never formed), for both or none of `input_ids`
                and `inputs_embeds`, for a missing image, for a number of sequences that is no multiple of B, for more
                tokens than positions, and for a cache together with gradient checkpointing.
        """
        if output_attentions or self.config.output_attentions:
            raise ValueError(
                "VisionDecoder never forms its attention weights, so it cannot return them: leave output_attentions off."
            )
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if cache is None and use_cache:
            cache = DynamicCache()
        if cache is not None and not isinstance(cache, EncoderDecoderCache):
            cache = EncoderDecoderCache(cache, DynamicCache())
        checkpointing = self.training and any(layer.gradient_checkpointing for layer in self.layers)
        if checkpointing and cache is not None:
            raise ValueError("A checkpointed layer runs twice and would cache its tokens twice: call model.eval().")

        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # (B*G, T, width)
        rows, length, _ = x.shape
        if cache is not None and cache.is_updated.get(0):
            cached: Any = cache.cross_attention_cache.layers[0]
            images = cached.keys.shape[0]
        elif encoder_hidden_states is not None:
            images = encoder_hidden_states.shape[0]
        else:
            raise ValueError("Pass encoder_hidden_states: without an image there is nothing for this decoder to read.")
        if rows % images:
            raise ValueError(
                f"{rows} sequences cannot be shared out among {images} images: pass the same number for each image, "
                "with the sequences of an image next to each other."
            )

        mask = create_causal_mask(
            config=self.config, inputs_embeds=x, attention_mask=attention_mask, **named(cache)
        )  # (B*G, 1, T, S), or None where the causal order is the whole mask
        if encoder_attention_mask is not None:
            encoder_attention_mask = encoder_attention_mask[:, None, None, :].bool()  # (B, 1, 1, N)

        if position_ids is None:
            past = cache.get_seq_length() if cache is not None else 0
            if isinstance(past, int) and past + length > self.config.max_position_embeddings:
                raise ValueError(
                    f"A sequence of {past + length} tokens does not fit {self.config.max_position_embeddings} learned "
                    "positions: make max_position_embeddings larger, or max_new_tokens smaller."
                )
            position_ids = past + torch.arange(length, device=x.device)  # (T,)
        x = x + self.embed_positions(position_ids)

        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states: tuple[Tensor, ...] = ()
        for layer in self.layers:
            hidden_states += (x,) if output_hidden_states else ()
            x = layer(
                x,
                encoder_hidden_states,
                mask=mask,
                encoder_mask=encoder_attention_mask,
                cache=cache,
            )
        x = self.layer_norm(x)

        output = CausalLMOutputWithCrossAttentions(
            logits=self.lm_head(x),
            **named(cache),
            hidden_states=(*hidden_states, x) if output_hidden_states else None,
        )
        return output.to_tuple() if return_dict is False else output


AutoConfig.register(VisionDecoderConfig.model_type, VisionDecoderConfig, exist_ok=True)
AutoModelForCausalLM.register(VisionDecoderConfig, VisionDecoderForCausalLM, exist_ok=True)
