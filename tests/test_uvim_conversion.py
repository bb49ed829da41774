"""Checkpoints of big_vision become the same models under every name that their arrays have had."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from recorded import golden
from scipy.ndimage import zoom
from transformers import (
    AutoModel,
    SiglipVisionModel,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTImageProcessorPil,
)

from vision_rl.cli import main
from vision_rl.data.digit_scenes import PANOPTIC_CATEGORIES
from vision_rl.models import (
    VisionDecoderConfig,
    VisionDecoderForCausalLM,
    vision_encoder_decoder,
    vit_encoder,
)
from vision_rl.models.sampling import sample
from vision_rl.models.uvim import (
    UViMConfig,
    UViMModel,
    convert_uvim,
    load_big_vision_stage1,
    load_big_vision_stage2,
    load_big_vision_vit,
)
from vision_rl.models.uvim.conversion import BigVisionArrays, stage1_entries, stage2_entries, vit_entries
from vision_rl.tasks.panoptic import PanopticProcessor


WIDTH, HEADS, MLP = 16, 2, 24
TASKS = {
    "panoptic": {"outputs": {"semantics": 5, "instances": 6}},
    "color": {"outputs": {"color": 3}, "regression": True},
}


def randomised(model):
    """Give a model random weights, heads and biases included, and a codebook that looks trained."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        if isinstance(model, UViMModel):
            model.codebook.dictionary.copy_(torch.randn(model.codebook.dictionary.shape, generator=generator))
            model.codebook.counts.copy_(torch.rand(model.codebook.counts.shape, generator=generator) + 0.5)
    return model.eval()


def stage1(task: str = "panoptic", **options) -> UViMModel:
    sizes = {"image_size": 16, "patch_size": 4, "hidden_size": WIDTH, "intermediate_size": MLP, "code_length": 4}
    depths = {"num_encoder_layers": 2, "num_decoder_layers": 3, "num_attention_heads": HEADS}
    return randomised(
        UViMModel(UViMConfig(**sizes, **depths, codebook_size=12, code_dim=8, **{**TASKS[task], **options}))
    )


def vit(num_layers: int = 2) -> SiglipVisionModel:
    return randomised(vit_encoder(16, 4, WIDTH, num_layers, HEADS, MLP))


def stage2() -> VisionEncoderDecoderModel:
    config = VisionDecoderConfig(
        vocab_size=13,
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        intermediate_size=MLP,
        max_position_embeddings=4,
    )
    return randomised(vision_encoder_decoder(vit(), VisionDecoderForCausalLM(config), 0, 0))


# --- from torch to JAX, written independently ----------------------------------------------------------------------

RENAMINGS = [  # (part of a torch name, part of big_vision's name)
    (r"\.weight$", "/kernel"),
    (r"\.bias$", "/bias"),
    (r"(layer_?norm\d?)/kernel$", r"\1/scale"),
    (r"encoder\.layers\.(\d+)\.", r"encoderblock_\1/"),
    (r"decoder\.layers\.(\d+)\.", r"decoder/EncDecBlock\1/"),
    (r"(encoderblock_\d+/)layer_norm1", r"\1LayerNorm_0"),
    (r"(encoderblock_\d+/)layer_norm2", r"\1LayerNorm_1"),
    (r"(encoderblock_\d+/)self_attn", r"\1MultiHeadDotProductAttention_0"),
    (r"(encoderblock_\d+/)mlp", r"\1MlpBlock_0"),
    (r"layer_norm([123])", r"LayerNorm\1"),
    (r"self_attn", "SelfAttn"),
    (r"cross_attn", "CrossAttn"),
    (r"mlp", "MLP"),
    (r"\.fc1", "/Dense_0"),
    (r"\.fc2", "/Dense_1"),
    (r"\.q_proj", "/query"),
    (r"\.k_proj", "/key"),
    (r"\.v_proj", "/value"),
    (r"\.out_proj", "/out"),
    (r"post_layernorm", "encoder_norm"),
]
TOP = {  # renamings for each model, which come first
    UViMModel: [
        (r"^(encoder|decoder)\.(encoder\.|post)", r"\1/\2"),
        (r"^stems\.", "embedding_"),
        (r"^heads\.", "head_"),
        (r"^(enc|dec)oder\.embeddings\.patch_embedding", r"ctx_\1_embedding"),
        (r"^(\w+)\.embeddings\.position_embedding\.weight", r"pos_embedding_\1"),
        (r"^codebook\.", "state/"),
    ],
    VisionEncoderDecoderModel: [
        (r"^encoder\.(encoder\.|post)", r"encoder/\1"),
        (r"^encoder\.embeddings\.patch_embedding", "EmbedPatches"),
        (r"^encoder\.embeddings\.position_embedding\.weight", "pos_embedding_encoder"),
        (r"^decoder\.embed_tokens\.weight", "decoder/EmbedTargets/embedding"),
        (r"^decoder\.embed_positions\.weight", "pos_embedding_decoder"),
        (r"^decoder\.layer_norm\.weight", "decoder/LayerNorm/scale"),
        (r"^decoder\.layer_norm\.bias", "decoder/LayerNorm/bias"),
        (r"^decoder\.lm_head", "decoder/LogitsDense"),
    ],
    SiglipVisionModel: [
        (r"^(encoder\.|post)", r"Transformer/\1"),
        (r"^embeddings\.patch_embedding", "embedding"),
        (r"^embeddings\.position_embedding\.weight", "pos_embedding"),
    ],
}


def to_jax(model) -> dict[str, np.ndarray]:
    """A model's arrays as big_vision stores them today. The parameters have no prefix."""
    arrays = {}
    for torch_name, tensor in model.state_dict().items():
        name = torch_name
        for pattern, replacement in TOP[type(model)] + RENAMINGS:
            name = re.sub(pattern, replacement, name)
        x = tensor.numpy()
        part = name.split("/")[-2] if "/" in name else ""
        if name == "state/num_updates":
            continue
        if "pos_embedding" in name:
            x = x[None]
        elif part in ("query", "key", "value"):
            x = x.T.reshape(*x.T.shape[:-1], HEADS, -1)
        elif part == "out" and name.endswith("kernel"):
            x = x.T.reshape(HEADS, -1, WIDTH)
        elif name.endswith("kernel") and x.ndim == 4:
            x = x.transpose(2, 3, 1, 0)  # OIHW -> HWIO
        elif name.startswith("head_") and x.ndim == 3:
            x = x.transpose(2, 0, 1)  # (C, P, width) -> (width, C, P)
        elif name.endswith("kernel") and x.ndim == 2:
            x = x.T
        assert name not in arrays
        arrays[name] = np.ascontiguousarray(x)
    return arrays


# --- the names that the arrays have had -----------------------------------------------------------------------------


def prefixed(prefix: str):
    def rename(arrays):
        return {name if name.startswith("state/") else prefix + name: array for name, array in arrays.items()}

    return rename


def with_optimiser(arrays):
    """The checkpoint of a training run, which has the optimiser's state."""
    extra = {"opt/0/count": np.zeros(()), "chrono/accum_examples_seen": np.ones(())}
    return {**prefixed("params/")(arrays), **extra}


def capitals(arrays):
    return {re.sub("^(encoder|decoder)/", lambda m: m[0].title(), name): x for name, x in arrays.items()}


def pre_linen(arrays):
    """Names before Linen: the parts of a block are numbered across classes."""
    old = {
        "LayerNorm_0": "LayerNorm_0",
        "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
        "LayerNorm_1": "LayerNorm_2",
        "MlpBlock_0": "MlpBlock_3",
    }
    return {"/".join(old.get(part, part) for part in name.split("/")): array for name, array in arrays.items()}


def shuffled(arrays):
    return dict(sorted(arrays.items(), reverse=True))


COMMON = {
    "bare": lambda arrays: arrays,
    "params": prefixed("params/"),
    "opt/target": prefixed("opt/target/"),
    "with optimiser": with_optimiser,
    "pre-Linen": lambda arrays: prefixed("opt/target/")(pre_linen(arrays)),
    "shuffled": shuffled,
}
OLD_STAGE1 = {
    "capitals": lambda arrays: prefixed("params/")(capitals(arrays)),
    "all that is old": lambda arrays: prefixed("params/")(pre_linen(capitals(arrays))),
}


def as_npz(arrays, folder: Path) -> Path:
    np.savez(folder / "checkpoint.npz", **arrays)
    return folder / "checkpoint.npz"


def assert_equal_models(ours, expected):
    assert type(ours) is type(expected) and not ours.training
    torch.testing.assert_close(ours.state_dict(), expected.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("names", [*COMMON, *OLD_STAGE1])
def test_stage_1_is_loaded_under_all_names(names, task, tmp_path):
    model = stage1(task)
    loaded = load_big_vision_stage1(as_npz({**COMMON, **OLD_STAGE1}[names](to_jax(model)), tmp_path))
    assert_equal_models(loaded, model)
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()
    pixel_values, codes = torch.randn(2, 3, 16, 16), torch.randint(0, 12, (2, 4))
    outputs = [each.decode(codes, pixel_values) for each in (loaded, model)]
    torch.testing.assert_close(*outputs, rtol=0, atol=0)


@pytest.mark.parametrize("names", COMMON)
def test_stage_2_is_loaded_under_all_names(names, tmp_path):
    model = stage2()
    loaded = load_big_vision_stage2(as_npz(COMMON[names](to_jax(model)), tmp_path))
    assert_equal_models(loaded, model)
    pixel_values, labels = torch.randn(2, 3, 16, 16), torch.randint(1, 13, (2, 4))
    outputs = [each(pixel_values=pixel_values, labels=labels) for each in (loaded, model)]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, rtol=0, atol=0)
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss, rtol=0, atol=0)
    tokens = loaded.generate(pixel_values, max_new_tokens=4, do_sample=False)
    assert tokens.shape == (2, 5) and not tokens[:, 0].any()


def augreg(arrays):
    """A ViT of "How to train your ViT?", with class token, classifier, and positions in a module of their own."""
    positions = np.concatenate([np.full((1, 1, WIDTH), 9.0, np.float32), arrays["pos_embedding"]], axis=1)
    renamed = {name: x for name, x in pre_linen(arrays).items() if name != "pos_embedding"}
    head = {"head/kernel": np.ones((WIDTH, 21843), np.float32), "head/bias": np.ones(21843, np.float32)}
    logits = {"pre_logits/kernel": np.ones((WIDTH, WIDTH), np.float32), "pre_logits/bias": np.ones(WIDTH, np.float32)}
    cls = {"cls": np.ones((1, 1, WIDTH), np.float32)}
    return {**renamed, **head, **logits, **cls, "Transformer/posembed_input/pos_embedding": positions}


def posemb_in_transformer(arrays):
    augmented = augreg(arrays)
    positions = augmented.pop("Transformer/posembed_input/pos_embedding")
    return {**augmented, "Transformer/pos_embedding": positions}


def class_token_without_position(arrays):
    """big_vision's own ViTs: positions are added before the class token is."""
    return {**arrays, "cls": np.ones((1, 1, WIDTH), np.float32), "head/kernel": np.ones((WIDTH, 10), np.float32)}


OLD_VIT = {
    "augreg": augreg,
    "augreg in training": lambda arrays: prefixed("opt/target/")(augreg(arrays)),
    "posemb": posemb_in_transformer,
    "cls": class_token_without_position,
}


@pytest.mark.parametrize("names", [*COMMON, *OLD_VIT])
def test_a_vit_is_loaded_under_all_names(names, tmp_path):
    model = vit()
    loaded = load_big_vision_vit(as_npz({**COMMON, **OLD_VIT}[names](to_jax(model)), tmp_path))
    assert_equal_models(loaded, model)
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()


def test_a_vit_s_positions_are_resized_as_scipy_zooms(tmp_path):
    model = vit()
    loaded = load_big_vision_vit(augreg(to_jax(model)), image_size=32)
    old = model.embeddings.position_embedding.weight.detach().view(4, 4, WIDTH)
    expected = torch.from_numpy(zoom(old.numpy(), (2, 2, 1), order=1)).flatten(0, 1)
    torch.testing.assert_close(loaded.embeddings.position_embedding.weight, expected, rtol=0, atol=1e-5)
    assert loaded(torch.randn(1, 3, 32, 32)).last_hidden_state.shape == (1, 64, WIDTH)


def test_a_loaded_vit_starts_a_stage_2_model():
    encoder = load_big_vision_vit(augreg(to_jax(vit())), image_size=32)
    config = VisionDecoderConfig(vocab_size=13, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=HEADS)
    model = vision_encoder_decoder(encoder, VisionDecoderForCausalLM(config), 0, 0)
    loss = model(pixel_values=torch.randn(1, 3, 32, 32), labels=torch.tensor([[3, 4]])).loss
    assert loss.item() == pytest.approx(np.log(13))  # a new head


@pytest.mark.parametrize("stored", ["V2", "bfloat16"])
def test_bfloat16_is_read_from_two_byte_voids_and_float16_as_it_is(stored, tmp_path):
    model = stage1()
    arrays = to_jax(model)
    for name, array in arrays.items():
        if stored == "V2":
            bits = torch.from_numpy(array).bfloat16().view(torch.int16).numpy()
            arrays[name] = bits.view("V2")
        else:
            arrays[name] = array.astype(np.float16)
    path = as_npz(arrays, tmp_path)
    assert np.load(path)["encoder_head/kernel"].dtype == ("V2" if stored == "V2" else np.float16)
    loaded = load_big_vision_stage1(path)
    dtype = torch.bfloat16 if stored == "V2" else torch.float16
    expected = {name: x.to(dtype).to(x.dtype) for name, x in model.state_dict().items()}
    torch.testing.assert_close(dict(loaded.state_dict()), expected, rtol=0, atol=0)


def test_every_weight_and_the_codebook_come_from_the_checkpoint():
    for model, entries in (
        (stage1(), stage1_entries),
        (stage1("color"), stage1_entries),
        (stage2(), stage2_entries),
        (vit(), lambda model: vit_entries(model, "Transformer", "embedding", "pos_embedding")),
    ):
        filled = [entry.tensor for entry in entries(model)]
        state = {name: x for name, x in model.state_dict(keep_vars=True).items() if "num_updates" not in name}
        assert {id(x) for x in filled} == {id(x) for x in state.values()} and len(filled) == len(state)
        assert {entry.name: entry.shape for entry in entries(model)} == {n: x.shape for n, x in to_jax(model).items()}


def test_settings_that_no_array_tells_can_be_given():
    model = stage1()
    config = UViMConfig(**{**model.config.to_dict(), "code_length": 1, "code_dropout": "none"})
    loaded = load_big_vision_stage1(to_jax(model), config)
    assert loaded.config.code_dropout == "none"
    assert loaded.decode(torch.tensor([[3]]), torch.randn(1, 3, 16, 16))["semantics"].shape == (1, 16, 16, 5)


def test_arrays_are_read_when_they_are_asked_for(tmp_path):
    arrays = to_jax(stage1())
    arrays["state/counts"] = np.array([object()])  # an object array is pickled, and numpy refuses to read it
    lazy = BigVisionArrays(as_npz(arrays, tmp_path))
    assert lazy["encoder_head/bias"].shape == (8,)
    with pytest.raises(ValueError, match="allow_pickle"):
        lazy["state/counts"]


# --- what does not fit ----------------------------------------------------------------------------------------------


def test_missing_and_unexpected_arrays_are_all_named_together():
    arrays = to_jax(stage1())
    for name in ("decoder_stem/kernel", "encoder/encoderblock_1/MlpBlock_0/Dense_1/bias"):
        del arrays[name]
    arrays["bottleneck_downsample"] = np.zeros((16, 4))
    arrays.update({f"ema/{i:02}": np.zeros(1) for i in range(25)})
    with pytest.raises(ValueError) as error:
        load_big_vision_stage1(arrays)
    message = str(error.value)
    assert "Missing: decoder_stem/kernel, encoder/encoderblock_1/MlpBlock_0/Dense_1/bias." in message
    assert "Unexpected: bottleneck_downsample, ema/00, ema/01, " in message
    assert "ema/18 and 6 more." in message and "ema/19" not in message


def test_an_array_of_another_shape_is_named_with_both_shapes():
    model = stage1()
    config = UViMConfig(**{**model.config.to_dict(), "hidden_size": 32})
    with pytest.raises(
        ValueError, match=r"`embedding_instances/kernel` has the shape \(6, 16, 16\) .* needs \(6, 16, 32\)"
    ):
        load_big_vision_stage1(to_jax(model), config)
    arrays = to_jax(stage2())
    arrays["decoder/EncDecBlock2/CrossAttn/out/kernel"] = np.zeros((4, 4, WIDTH))
    with pytest.raises(
        ValueError, match=r"`decoder/EncDecBlock2/CrossAttn/out/kernel` .* \(4, 4, 16\) .* \(2, 8, 16\)"
    ):
        load_big_vision_stage2(arrays)


def test_the_wrong_kind_of_checkpoint_is_recognised(tmp_path):
    stage_1, stage_2, encoder = to_jax(stage1()), to_jax(stage2()), to_jax(vit())
    with pytest.raises(ValueError, match="has no `decoder/EmbedTargets/embedding`. It has: ctx_dec_embedding/bias"):
        load_big_vision_stage2(stage_1)
    with pytest.raises(ValueError, match="has no `ctx_enc_embedding/kernel`"):
        load_big_vision_stage1(stage_2)
    with pytest.raises(ValueError, match="has no `pos_embedding`"):
        load_big_vision_vit(stage_2)
    with pytest.raises(ValueError, match="This is not a checkpoint of UViM.*It has: Transformer/encoder_norm/bias"):
        convert_uvim(encoder, tmp_path)


# --- folders for from_pretrained ------------------------------------------------------------------------------------


def test_a_converted_stage_1_is_loaded_by_the_auto_class(tmp_path):
    model = stage1()
    npz = as_npz(prefixed("params/")(to_jax(model)), tmp_path)
    assert isinstance(convert_uvim(npz, tmp_path / "stage1"), UViMModel)
    assert_equal_models(AutoModel.from_pretrained(tmp_path / "stage1"), model)


def test_a_converted_stage_2_is_loaded_with_its_special_ids(tmp_path):
    model = stage2()
    npz = as_npz(prefixed("params/")(to_jax(model)), tmp_path)
    assert isinstance(convert_uvim(npz, tmp_path / "model"), VisionEncoderDecoderModel)
    loaded = VisionEncoderDecoderModel.from_pretrained(tmp_path / "model")
    assert_equal_models(loaded, model)
    for place in (loaded.config, loaded.generation_config):
        assert (place.decoder_start_token_id, place.pad_token_id, place.eos_token_id) == (0, 0, None)
    assert loaded.generate(torch.zeros(1, 3, 16, 16), do_sample=False).shape == (1, 1 + 4)  # the start and all codes


@pytest.mark.parametrize("task", TASKS)
def test_checkpoints_are_read_at_another_image_size(task):
    model, other = stage1(task), stage2()
    config = UViMConfig(**{**model.config.to_dict(), "image_size": 24})
    larger = load_big_vision_stage1(to_jax(model), config)
    positions = "embeddings.position_embedding.weight"
    for part in ("encoder", "decoder"):
        old, new = (getattr(of, part).state_dict()[positions].reshape(-1, WIDTH) for of in (model, larger))
        expected = zoom(old.reshape(4, 4, WIDTH), (1.5, 1.5, 1), order=1)
        np.testing.assert_allclose(new.reshape(6, 6, WIDTH), expected, atol=1e-6)
    outputs = larger.decode(torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 3, 24, 24))
    assert all(output.shape[1:3] == (24, 24) for output in outputs.values())

    config = copy.deepcopy(other.config)
    config.encoder.image_size = 24
    larger = load_big_vision_stage2(to_jax(other), config)
    assert larger.generate(torch.zeros(1, 3, 24, 24), do_sample=False).shape == (1, 1 + 4)


def test_a_stage_2_model_of_a_given_config_can_be_sampled_and_trained():
    model = stage2()
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(model.encoder.config, model.decoder.config)
    loaded = load_big_vision_stage2(to_jax(model), config)
    assert sample(loaded, torch.zeros(1, 3, 16, 16), 2).completion_ids.shape == (1, 2, 4)
    assert loaded(pixel_values=torch.zeros(1, 3, 16, 16), labels=torch.ones(1, 4, dtype=torch.long)).loss > 0


# --- the authors' arrays --------------------------------------------------------------------------------------------


def test_a_loaded_stage_2_writes_what_the_reference_writes():
    arrays = golden("uvim_stage2.npz")
    model = load_big_vision_stage2({name: arrays[name] for name in arrays.files if name.startswith("params/")})
    pixel_values = torch.from_numpy(arrays["in/image"]).permute(0, 3, 1, 2)  # NHWC -> NCHW
    labels = torch.from_numpy(arrays["in/labels"]).long()
    with torch.no_grad():
        logits = model(pixel_values=pixel_values, decoder_input_ids=F.pad(labels[:, :-1], (1, 0))).logits
    np.testing.assert_allclose(logits, arrays["out/logits"], rtol=0, atol=1e-4)
    tokens = model.generate(pixel_values, max_new_tokens=16, do_sample=False)[:, 1:]
    np.testing.assert_array_equal(tokens, arrays["out/greedy_tokens"])


def test_the_command_converts_a_checkpoint_and_says_what_it_made(tmp_path, capsys):
    path = as_npz(to_jax(stage1()), tmp_path)
    assert main(["convert-uvim", str(path), str(tmp_path / "out")]) == 0
    assert "UViMModel" in capsys.readouterr().out
    assert_equal_models(AutoModel.from_pretrained(tmp_path / "out"), stage1())


def test_converted_checkpoints_and_a_processor_are_what_the_command_line_tunes(tmp_path):
    model = stage1(outputs={"semantics": len(PANOPTIC_CATEGORIES) + 1, "instances": 6})
    for made, folder in ((model, "panoptic/stage1"), (stage2(), "panoptic")):
        convert_uvim(as_npz(to_jax(made), tmp_path), tmp_path / folder)
    image_processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    PanopticProcessor(
        image_processor, PANOPTIC_CATEGORIES, max_instances=6, num_codes=12, code_len=4, flip=False
    ).save_pretrained(tmp_path / "panoptic")
    few = "--scenes 8 --max_steps 1 --per_device_train_batch_size 4 --eval_strategy no --report_to none --use_cpu true"
    paths = ["--model", f"{tmp_path}/panoptic", "--output_dir", f"{tmp_path}/tuned"]
    assert main(["tune", *paths, *few.split()]) == 0
    assert (tmp_path / "tuned" / "stage1" / "model.safetensors").exists()
    assert VisionEncoderDecoderModel.from_pretrained(tmp_path / "tuned").config.decoder.vocab_size == 13


def test_the_command_tells_what_is_wrong_in_one_line(tmp_path, capsys):
    assert main(["convert-uvim", str(tmp_path / "absent.npz"), str(tmp_path)]) == 1
    np.savez(tmp_path / "other.npz", weights=np.ones(3))
    assert main(["convert-uvim", str(tmp_path / "other.npz"), str(tmp_path)]) == 1
    absent, other = capsys.readouterr().err.splitlines()
    assert "absent.npz" in absent and "This is not a checkpoint of UViM" in other


def test_the_command_tells_of_files_that_were_not_fetched_whole(tmp_path, capsys):
    path = as_npz(to_jax(stage1()), tmp_path)
    content = path.read_bytes()
    place = content.index(b"head_semantics/kernel.npy") + 200
    broken = {
        "cut.npz": content[: len(content) // 2],
        "empty.npz": b"",
        "page.npz": b"<html>not found</html>",
        "flipped.npz": content[:place] + bytes(8) + content[place + 8 :],
    }
    for name, given in broken.items():
        (tmp_path / name).write_bytes(given)
        assert main(["convert-uvim", str(tmp_path / name), str(tmp_path / "out")]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert name in line and line.endswith("fetch it again.")
    np.save(tmp_path / "single.npy", np.ones(3))
    assert main(["convert-uvim", str(tmp_path / "single.npy"), str(tmp_path / "out")]) == 1
    assert "holds a single array" in capsys.readouterr().err
    assert main(["convert-uvim", str(path), str(tmp_path / "page.npz")]) == 1
    assert "page.npz is a file: the model needs a folder" in capsys.readouterr().err


def test_a_stage_2_checkpoint_is_checked_against_a_given_config():
    arrays = to_jax(stage2())
    assert_equal_models(load_big_vision_stage2(arrays, stage2().config), stage2())
    assert load_big_vision_stage2(arrays).generation_config.suppress_tokens == [0]
    config = copy.deepcopy(stage2().config)
    config.decoder.vocab_size += 1
    with pytest.raises(ValueError, match="EmbedTargets/embedding"):
        load_big_vision_stage2(arrays, config)
