"""The encoder: positions resized as scipy's zoom does, checkpoints of others, the special ids of the whole model."""

import pytest
import torch
from scipy.ndimage import zoom
from transformers import (
    BertConfig,
    BertLMHeadModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)

from vision_rl.models import (
    VisionDecoderConfig,
    VisionDecoderForCausalLM,
    load_encoder,
    load_image_processor,
    resize_position_embeddings,
    vision_encoder_decoder,
    vit_encoder,
)


WIDTH = 32
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64, "patch_size": 16}


def siglip() -> SiglipVisionModel:
    return vit_encoder(**SIZES, intermediate_size=64).eval()


def vit() -> ViTModel:
    return ViTModel(ViTConfig(**SIZES, intermediate_size=64), add_pooling_layer=False).eval()


def dinov2() -> Dinov2Model:
    return Dinov2Model(Dinov2Config(**SIZES)).eval()


def tiny_decoder() -> VisionDecoderForCausalLM:
    config = VisionDecoderConfig(
        vocab_size=11, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64
    )
    decoder = VisionDecoderForCausalLM(config).eval()
    torch.nn.init.normal_(decoder.lm_head.weight, std=0.3)
    return decoder


def positions(encoder) -> torch.Tensor:
    """`(N, width)`; that of a class token comes first."""
    if isinstance(encoder, SiglipVisionModel):
        return encoder.embeddings.position_embedding.weight.detach().clone()
    return encoder.embeddings.position_embeddings[0].detach().clone()


def image(height: int, width: int | None = None) -> torch.Tensor:
    return torch.randn(2, 3, height, width or height, generator=torch.Generator().manual_seed(0))


def encode(encoder, height: int, width: int | None = None) -> torch.Tensor:
    return encoder(image(height, width)).last_hidden_state.detach()


def test_the_default_is_vit_b_16_of_the_paper():
    with torch.device("meta"):
        encoder = vit_encoder(224)
    assert (
        sum(parameter.numel() for parameter in encoder.parameters()) == 85_797_120
    )  # ViT-B/16 without class token and head
    config = encoder.config
    assert (config.hidden_act, config.layer_norm_eps, encoder.use_head) == ("gelu_pytorch_tanh", 1e-6, False)


# --- resizing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [128, 80, 32])
@pytest.mark.parametrize(("make", "class_tokens"), [(siglip, 0), (vit, 1), (dinov2, 1)])
def test_positions_are_resized_as_scipy_zooms_and_the_class_token_keeps_its_own(make, class_tokens, size):
    encoder = make()
    old = positions(encoder)
    resize_position_embeddings(encoder, size)
    new = positions(encoder)
    grid = size // 16
    expected = zoom(old[class_tokens:].view(4, 4, WIDTH).numpy(), (grid / 4, grid / 4, 1), order=1)
    assert expected.shape == (grid, grid, WIDTH)
    torch.testing.assert_close(
        new[class_tokens:].view(grid, grid, WIDTH), torch.from_numpy(expected), rtol=0, atol=1e-5
    )
    assert torch.equal(new[:class_tokens], old[:class_tokens])


def test_corners_stay_and_the_middle_of_two_patches_is_their_mean():
    encoder = vit_encoder(32, 16, 2, 1, 1, 4)  # a grid of 2 x 2
    old = positions(encoder)
    resize_position_embeddings(encoder, 48)
    a, b, c, d = old
    middle = (a + b + c + d) / 4
    expected = torch.stack([a, (a + b) / 2, b, (a + c) / 2, middle, (b + d) / 2, c, (c + d) / 2, d])
    torch.testing.assert_close(positions(encoder), expected)


@pytest.mark.parametrize("make", [siglip, vit, dinov2])
def test_a_resized_encoder_reads_the_new_size_and_is_saved_with_it(make, tmp_path):
    encoder = make()
    resize_position_embeddings(encoder, 128)
    assert encoder.config.image_size == 128
    encoded = encode(encoder, 128)
    assert encoded.shape == (2, 64 + (not isinstance(encoder, SiglipVisionModel)), WIDTH)
    encoder.save_pretrained(tmp_path)
    options = {"add_pooling_layer": False} if isinstance(encoder, ViTModel) else {}
    loaded, report = type(encoder).from_pretrained(tmp_path, output_loading_info=True, **options)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    torch.testing.assert_close(encode(loaded, 128), encoded, rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [siglip, vit, dinov2])
def test_the_same_size_changes_nothing(make):
    encoder = make()
    before = {name: parameter.clone() for name, parameter in encoder.named_parameters()}
    parameters = list(encoder.parameters())
    resize_position_embeddings(encoder, 64)
    assert all(a is b for a, b in zip(parameters, encoder.parameters(), strict=True))
    torch.testing.assert_close(dict(encoder.named_parameters()), before, rtol=0, atol=0)


@pytest.mark.parametrize("make", [siglip, vit, dinov2])
def test_resized_positions_are_trained_unless_they_were_frozen(make):
    for trained in (True, False):
        encoder = make().requires_grad_(trained)
        resize_position_embeddings(encoder, 128)
        assert all(parameter.requires_grad == trained for parameter in encoder.parameters())


def test_a_vit_reads_images_that_are_not_square(tmp_path):
    encoder = vit()
    old = positions(encoder)
    resize_position_embeddings(encoder, (64, 128))
    expected = zoom(old[1:].view(4, 4, WIDTH).numpy(), (1, 2, 1), order=1)
    torch.testing.assert_close(positions(encoder)[1:].view(4, 8, WIDTH), torch.from_numpy(expected), rtol=0, atol=1e-5)
    encoded = encode(encoder, 64, 128)
    encoder.save_pretrained(tmp_path)
    loaded = load_encoder(tmp_path)
    torch.testing.assert_close(encode(loaded, 64, 128), encoded, rtol=0, atol=1e-6)
    resize_position_embeddings(loaded, 64)  # back to a square grid
    assert encode(loaded, 64).shape == (2, 17, WIDTH)


def test_sizes_that_an_encoder_cannot_have_are_refused():
    for make in (siglip, dinov2):
        with pytest.raises(ValueError, match="only square images"):
            resize_position_embeddings(make(), (64, 128))
    with pytest.raises(ValueError, match="100 cannot be cut into patches"):
        resize_position_embeddings(vit(), 100)
    with pytest.raises(ValueError, match="the positions of ResNetModel"):
        resize_position_embeddings(ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])), 64)


@pytest.mark.parametrize("make", [siglip, vit, dinov2])
def test_a_whole_model_is_resized_together_with_its_config(make, tmp_path):
    model = vision_encoder_decoder(make(), tiny_decoder(), 0, 0).eval()
    resize_position_embeddings(model, 128)
    assert model.config.encoder.image_size == model.encoder.config.image_size == 128
    model.save_pretrained(tmp_path)
    loaded = VisionEncoderDecoderModel.from_pretrained(tmp_path)
    ids = torch.tensor([[0, 3], [0, 5]])
    logits = [m(pixel_values=image(128), decoder_input_ids=ids).logits for m in (model, loaded)]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-6)
    resize_position_embeddings(loaded.encoder, 64)  # it shares its config with the whole model
    assert loaded.config.encoder.image_size == 64


# --- checkpoints ----------------------------------------------------------------------------------------------------


def siglip_with_text() -> SiglipModel:
    text = {"num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 9}
    config = SiglipConfig(text_config={"hidden_size": WIDTH, **text}, vision_config={"intermediate_size": 64, **SIZES})
    return SiglipModel(config).eval()


CHECKPOINTS = {
    "siglip": (siglip_with_text, lambda model: model.vision_model),
    "siglip vision": (lambda: SiglipVisionModel(SiglipVisionConfig(**SIZES, intermediate_size=64)), lambda m: m),
    "paper's vit": (siglip, lambda model: model),
    "vit": (lambda: ViTModel(ViTConfig(**SIZES, intermediate_size=64)), lambda model: model),
    "vit classifier": (
        lambda: ViTForImageClassification(ViTConfig(**SIZES, intermediate_size=64)),
        lambda model: model.vit,
    ),
    "dinov2": (dinov2, lambda model: model),
    "dinov2 classifier": (lambda: Dinov2ForImageClassification(Dinov2Config(**SIZES)), lambda model: model.dinov2),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_the_vit_of_a_checkpoint_is_loaded_without_what_has_no_part_in_it(kind, tmp_path):
    make, part = CHECKPOINTS[kind]
    model = make().eval()
    model.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    torch.testing.assert_close(encode(encoder, 64), encode(part(model), 64), rtol=0, atol=1e-6)
    assert not [name for name, _ in encoder.named_parameters() if "head" in name or "pooler" in name]
    encoder(image(64)).last_hidden_state.sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())  # or DDP would wait for it


def test_a_checkpoint_is_loaded_at_another_size_and_precision(tmp_path):
    model = vit()
    model.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path, image_size=128, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.bfloat16}
    resize_position_embeddings(model, 128)
    torch.testing.assert_close(positions(encoder).float(), positions(model), rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_the_first_layers_of_a_checkpoint_are_kept_and_saved_as_such(kind, tmp_path):
    make, part = CHECKPOINTS[kind]
    model = make().eval()
    model.save_pretrained(tmp_path / "whole")
    encoder = load_encoder(tmp_path / "whole", num_hidden_layers=1)
    states, expected = (
        module(image(64), output_hidden_states=True).hidden_states[:2] for module in (encoder, part(model))
    )
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-6)
    encoder.save_pretrained(tmp_path / "part")
    again = load_encoder(tmp_path / "part")
    assert again.config.num_hidden_layers == 1
    torch.testing.assert_close(encode(again, 64), encode(encoder, 64), rtol=0, atol=0)
    with pytest.raises(ValueError, match="has 2 layers, so num_hidden_layers cannot be 3"):
        load_encoder(tmp_path / "whole", num_hidden_layers=3)


def test_images_are_normalised_as_the_checkpoint_says_or_else_a_warning_says_how(tmp_path, caplog):
    ViTImageProcessorPil(size={"shortest_edge": 256}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2] * 3).save_pretrained(
        tmp_path
    )
    loaded = load_image_processor(tmp_path, 64)
    assert (list(loaded.image_mean), list(loaded.image_std)) == ([0.4, 0.5, 0.6], [0.2] * 3)
    assert dict(loaded.size) == {"height": 64, "width": 64}
    (tmp_path / "bare").mkdir()
    assert list(load_image_processor(tmp_path / "bare", 64).image_mean) == [0.5] * 3
    assert "has no preprocessor_config.json" in caplog.text


@pytest.mark.parametrize("config", [ResNetConfig(), BertConfig()], ids=["resnet", "bert"])
def test_a_checkpoint_that_is_no_vit_is_refused(config, tmp_path):
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"holds a {config.model_type} model, but the encoder must be a SigLIP"):
        load_encoder(tmp_path)


# --- the whole model ------------------------------------------------------------------------------------------------


def gpt2_with_leftovers() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=11, n_embd=WIDTH, n_layer=1, n_head=4, bos_token_id=1, eos_token_id=2, add_cross_attention=True
    )
    decoder = GPT2LMHeadModel(config).eval()
    decoder.generation_config.update(forced_eos_token_id=2, max_length=5, num_beams=4, suppress_tokens=[3])
    return decoder


@pytest.mark.parametrize("make_decoder", [tiny_decoder, gpt2_with_leftovers])
def test_special_ids_are_set_everywhere_and_nothing_else_is_inherited(make_decoder):
    model = vision_encoder_decoder(siglip(), make_decoder(), 1, 0, eos_token_id=2)
    ids = {"decoder_start_token_id": 1, "pad_token_id": 0, "eos_token_id": 2}
    settings = model.generation_config.to_diff_dict()
    settings.pop("transformers_version", None)
    assert settings == ids
    assert {name: getattr(model.config, name) for name in ids} == ids
    loss = model(pixel_values=image(64), labels=torch.tensor([[4, 5, 2], [4, 2, -100]])).loss
    assert loss.isfinite()


@pytest.mark.parametrize("make_decoder", [tiny_decoder, gpt2_with_leftovers])
def test_without_an_end_token_a_sequence_never_ends_also_when_reloaded(make_decoder, tmp_path):
    model = vision_encoder_decoder(siglip(), make_decoder(), decoder_start_token_id=1, pad_token_id=0).eval()
    model.decoder.get_output_embeddings().weight.data[2] *= 5  # make GPT-2's end token likely
    model.save_pretrained(tmp_path)
    loaded = VisionEncoderDecoderModel.from_pretrained(tmp_path)
    assert loaded.generation_config.eos_token_id is None
    torch.manual_seed(0)
    for each in (model, loaded):
        tokens = each.generate(image(64), max_new_tokens=30, do_sample=True, top_k=0, num_return_sequences=8)
        assert tokens.shape == (16, 31) and (tokens[:, :-1] == 2).any()


def test_a_bert_decoder_serves_as_well():
    config = BertConfig(
        vocab_size=11,
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        is_decoder=True,
        add_cross_attention=True,
    )
    model = vision_encoder_decoder(dinov2(), BertLMHeadModel(config).eval(), 1, 0, eos_token_id=2).eval()
    assert model.generate(image(64), max_new_tokens=4, do_sample=False).shape[0] == 2


def test_a_decoder_that_cannot_look_at_images_is_refused():
    config = LlamaConfig(
        vocab_size=11, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64
    )
    with pytest.raises(ValueError, match="LlamaForCausalLM has no cross-attention"):
        vision_encoder_decoder(siglip(), LlamaForCausalLM(config), 1, 0)
