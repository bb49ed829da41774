"""A ViT with a convolutional stem behaves like any other ViT, from its shapes to its checkpoints."""

import pytest
import torch
from transformers import AutoModel, VisionEncoderDecoderModel

from vision_rl.models import (
    ConvStemVisionModel,
    VisionDecoderConfig,
    VisionDecoderForCausalLM,
    init_sincos_positions,
    resize_position_embeddings,
    vision_encoder_decoder,
    vit_encoder,
)
from vision_rl.models.preparation import freeze_unused_parameters


SIZE = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def stem_encoder(image_size: int = 32, patch_size: int = 8, **size) -> ConvStemVisionModel:
    torch.manual_seed(0)
    return vit_encoder(image_size, patch_size, conv_stem=True, **{**SIZE, **size}).eval()


@pytest.mark.parametrize("patch_size", [2, 4, 8])
def test_it_gives_as_many_patches_as_a_plain_vit(patch_size):
    pixel_values = torch.randn(2, 3, 32, 32)
    plain = vit_encoder(32, patch_size, **SIZE)(pixel_values=pixel_values).last_hidden_state
    assert stem_encoder(patch_size=patch_size)(pixel_values=pixel_values).last_hidden_state.shape == plain.shape


def test_an_images_patches_do_not_depend_on_its_batch():
    encoder, images = stem_encoder(), torch.randn(4, 3, 32, 32)
    together = encoder(pixel_values=images).last_hidden_state
    alone = encoder(pixel_values=images[:1]).last_hidden_state
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-5)


def test_every_parameter_learns():
    encoder = stem_encoder()
    encoder(pixel_values=torch.randn(2, 3, 32, 32)).last_hidden_state.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_a_saved_model_is_loaded_with_its_stem(tmp_path):
    decoder = VisionDecoderForCausalLM(VisionDecoderConfig(vocab_size=9, max_position_embeddings=5, **SIZE))
    model = vision_encoder_decoder(stem_encoder(), decoder, decoder_start_token_id=0, pad_token_id=0)
    init_sincos_positions(model)
    inputs = {"pixel_values": torch.randn(2, 3, 32, 32), "decoder_input_ids": torch.zeros(2, 3, dtype=torch.long)}
    model.eval().save_pretrained(tmp_path)
    loaded = VisionEncoderDecoderModel.from_pretrained(tmp_path).eval()
    assert isinstance(loaded.encoder, ConvStemVisionModel)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert freeze_unused_parameters(loaded) == []
    resize_position_embeddings(loaded, 64)
    assert loaded(**{**inputs, "pixel_values": torch.randn(2, 3, 64, 64)}).logits.isfinite().all()


def test_the_encoder_alone_is_found_by_its_config(tmp_path):
    encoder = stem_encoder()
    encoder.save_pretrained(tmp_path)
    images = torch.randn(1, 3, 32, 32)
    again = AutoModel.from_pretrained(tmp_path).eval()
    assert torch.equal(again(pixel_values=images).last_hidden_state, encoder(pixel_values=images).last_hidden_state)


@pytest.mark.parametrize("wrong", [{"patch_size": 6}, {"patch_size": 1}, {"hidden_size": 72}])
def test_sizes_that_cannot_be_halved_are_refused(wrong):
    with pytest.raises(ValueError, match="patch_size that is a power of two"):
        stem_encoder(**wrong)
