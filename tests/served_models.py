"""Tiny Pix2Struct, Florence-2 and BLIP models with transformers' own processors, made in memory."""

from typing import Any

import torch
from datasets import Dataset
from tiny import image_processor, text_dataset
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipProcessor,
    CLIPImageProcessorPil,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    Pix2StructConfig,
    Pix2StructForConditionalGeneration,
    Pix2StructImageProcessorPil,
    Pix2StructProcessor,
    PreTrainedTokenizerFast,
)


IMAGE_TOKENS = 17  # of Florence-2: the 4 x 4 map and its mean
KINDS = ["pix2struct", "florence2", "blip"]


def tokenizer(first: list[str], around: str, **special) -> PreTrainedTokenizerFast:
    """One token for each letter, after the tokens of `first`. `around` frames a text, as in "<s> $A </s>"."""
    vocabulary = {token: i for i, token in enumerate([*first, *"abcd", "<unk>"])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.add_special_tokens([AddedToken(token, special=True) for token in first])
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    known = [(token, vocabulary[token]) for token in first if token in around]
    made.post_processor = processors.TemplateProcessing(around, special_tokens=known)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", **special)


def served(kind: str, seed: int = 0, sharp: float = 0.15) -> tuple[Any, Any]:
    """A model and its processor. `sharp` scales the weights, so that some tokens are likelier than others."""
    torch.manual_seed(seed)
    model, processor = {"pix2struct": _pix2struct, "florence2": _florence2, "blip": _blip}[kind]()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=sharp)
    model.tie_weights()
    return model.eval(), processor


def dataset(kind: str, count: int = 16, seed: int = 0) -> Dataset:
    """Pictures with words; for a model that reads prompts, also prompts of different lengths."""
    rows = text_dataset(count, seed=seed)
    if kind == "florence2":
        rows = rows.add_column("prompt", [("ab", "abcd", "c")[row % 3] for row in range(count)])
    return rows


def _pix2struct():
    text = {"vocab_size": 7, "hidden_size": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    sizes = {"hidden_size": 32, "patch_embed_hidden_size": 192, "d_ff": 64, "d_kv": 16, "num_hidden_layers": 2}
    config = Pix2StructConfig(text_config=text, vision_config={**sizes, "num_attention_heads": 2, "seq_len": 64})
    words = tokenizer(["<pad>", "</s>"], "$A </s>", pad_token="<pad>", eos_token="</s>")
    images = Pix2StructImageProcessorPil(patch_size={"height": 8, "width": 8}, max_patches=20)
    return Pix2StructForConditionalGeneration(config), Pix2StructProcessor(images, words)


def _florence2():
    words = tokenizer(
        ["<s>", "<pad>", "</s>", "<image>"],
        "<s> $A </s>",
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    text = BartConfig(
        vocab_size=9, d_model=32, encoder_layers=1, decoder_layers=2, max_position_embeddings=64, **heads
    )
    vision = {
        "depths": [1, 1],
        "patch_size": [7, 3],
        "patch_stride": [4, 2],
        "patch_padding": [3, 1],
        "patch_prenorm": [False, True],
        "embed_dim": [16, 32],
        "num_heads": [2, 2],
        "num_groups": [2, 2],
        "window_size": 4,
        "projection_dim": 32,
        "max_position_embeddings": 10,
        "drop_path_rate": 0.0,
    }
    config = Florence2Config(text_config=text.to_dict(), vision_config=vision, image_token_id=3)
    images = CLIPImageProcessorPil(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32})
    images.image_seq_length = IMAGE_TOKENS
    return Florence2ForConditionalGeneration(config), Florence2Processor(images, words)


def _blip():
    """Like the published models: `bos` starts a caption, the tokenizer's `[SEP]` ends it, and `eos` is another id."""
    first = ["[PAD]", "[CLS]", "[SEP]", "[DEC]"]
    words = tokenizer(first, "[CLS] $A [SEP]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": 3, "eos_token_id": 7, "pad_token_id": 0, "sep_token_id": 2}
    text = {**sizes, **ids, "vocab_size": 9, "encoder_hidden_size": 32, "max_position_embeddings": 32}
    vision = {**sizes, "image_size": 32, "patch_size": 16}
    config = BlipConfig(text_config={**text, "projection_dim": 32}, vision_config=vision, projection_dim=32)
    return BlipForConditionalGeneration(config), BlipProcessor(image_processor(), words)
