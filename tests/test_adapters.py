"""Adapters of every task type of PEFT train every encoder, although PEFT calls the model differently for each type."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import text_dataset, text_processor, tiny_model

from vision_rl import VisionMLEConfig, VisionMLETrainer


@pytest.mark.parametrize("task_type", [None, "SEQ_2_SEQ_LM", "CAUSAL_LM", "FEATURE_EXTRACTION"])
@pytest.mark.parametrize("decoder", ["ours", "trocr"])
def test_adapters_of_every_task_type_are_trained(tmp_path, decoder, task_type):
    adapters = LoraConfig(r=2, target_modules="all-linear", task_type=task_type)
    model = get_peft_model(tiny_model(decoder, sharp=0.3), adapters)
    before = {name: value.clone() for name, value in model.state_dict().items() if "lora_B" in name}
    args = VisionMLEConfig(
        str(tmp_path), max_steps=1, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True
    )
    trainer = VisionMLETrainer(model, args, train_dataset=text_dataset(), processing_class=text_processor())
    trainer.train()
    after = model.state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in before.items())
    pickle.dumps(copy.deepcopy(model.get_base_model().encoder))
