"""In a fresh process `import vision_rl` is enough for transformers' Auto classes to find our models and processors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import image_processor, text_processor, tiny_model

from vision_rl.data.digit_scenes import PANOPTIC_CATEGORIES
from vision_rl.models import ConvStemVisionConfig, ConvStemVisionModel, UViMConfig, UViMModel
from vision_rl.tasks.captioning import CaptioningProcessor
from vision_rl.tasks.colorization import ColorizationProcessor
from vision_rl.tasks.detection import DetectionProcessor
from vision_rl.tasks.panoptic import PanopticProcessor


PROCESSORS = {
    "captioning": lambda: CaptioningProcessor(image_processor(), text_processor().tokenizer),
    "colorization": lambda: ColorizationProcessor(image_processor(), num_codes=16, code_len=4),
    "detection": lambda: DetectionProcessor(image_processor(), ["cup", "plate"]),
    "ocr": text_processor,
    "panoptic": lambda: PanopticProcessor(image_processor(), PANOPTIC_CATEGORIES, num_codes=16, code_len=4),
}
MODELS = {
    "VisionEncoderDecoderModel": tiny_model,
    "AutoModelForCausalLM": lambda: tiny_model().decoder,
    "AutoModelForImageTextToText": tiny_model,
    "AutoModel": lambda: ConvStemVisionModel(
        ConvStemVisionConfig(
            hidden_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=32,
            patch_size=16,
        )
    ),
    "AutoModel of stage I": lambda: UViMModel(
        UViMConfig(
            image_size=32,
            patch_size=8,
            hidden_size=32,
            num_encoder_layers=1,
            num_decoder_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            codebook_size=16,
            code_dim=16,
            code_length=4,
            outputs={"color": 3},
            regression=True,
        )
    ),
}
ORDERS = {
    "ours first": "import vision_rl; import transformers; from transformers import AutoConfig, AutoProcessor",
    "transformers first": "import transformers; from transformers import AutoConfig, AutoProcessor; import vision_rl",
}
LOAD = """
import json, sys
early = [name for name in sys.modules if name.startswith(("vision_rl.models", "vision_rl.tasks"))]
folder, processors, models = json.loads(sys.argv[1])
found = {}
for name in processors:
    loaded = transformers.AutoProcessor.from_pretrained(f"{folder}/{name}")
    found[name] = f"{type(loaded).__module__}.{type(loaded).__name__}"
for name in models:
    loaded = getattr(transformers, name.split()[0]).from_pretrained(f"{folder}/{name}")
    config = transformers.AutoConfig.from_pretrained(f"{folder}/{name}")
    found[name] = [type(loaded).__name__, type(config).__name__, sum(p.double().sum().item() for p in loaded.parameters())]
print(json.dumps({"early": early, "found": found}))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    for name, make in {**PROCESSORS, **MODELS}.items():
        make().save_pretrained(folder / name)
    return folder


@pytest.mark.compatibility
@pytest.mark.parametrize("order", ORDERS)
def test_auto_classes_find_all_of_ours_and_load_none_of_it_before(saved, order):
    given = json.dumps([str(saved), list(PROCESSORS), list(MODELS)])
    code = [sys.executable, "-c", f"{ORDERS[order]}\n{LOAD}", given]
    result = json.loads(subprocess.run(code, check=True, capture_output=True, text=True).stdout)
    assert result["early"] == []
    torch.manual_seed(0)
    for name, make in PROCESSORS.items():
        kind = type(make())
        assert result["found"][name] == f"{kind.__module__}.{kind.__name__}"
    for name, make in MODELS.items():
        model = make()
        total = sum(parameter.double().sum().item() for parameter in model.parameters())
        assert result["found"][name] == [type(model).__name__, type(model.config).__name__, pytest.approx(total)]


def test_a_processor_of_nobody_is_what_transformers_makes_of_it(saved, tmp_path):
    """As without vision_rl, `AutoProcessor` then looks for the parts of the processor."""
    content = json.loads((saved / "detection" / "processor_config.json").read_text())
    (tmp_path / "processor_config.json").write_text(json.dumps({**content, "processor_class": "NobodysProcessor"}))
    code = (
        "import vision_rl; from transformers import AutoProcessor\n"
        f"print(type(AutoProcessor.from_pretrained({str(tmp_path)!r})).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "ViTImageProcessorPil"
