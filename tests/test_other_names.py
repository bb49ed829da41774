"""Arguments of transformers' and TRL's trainers and configs are ours too, or an error says what to use instead."""

import dataclasses
import inspect

import pytest
import trl
from tiny import share_of_a, text_dataset, text_processor, tiny_model
from transformers import Trainer, TrainingArguments

from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer
from vision_rl.trainer.other_names import OF_CONFIGS, OF_TRAINERS


CONFIGS = [VisionMLEConfig, VisionRewardConfig]
TRAINERS = [VisionMLETrainer, VisionRewardTrainer]


@pytest.mark.parametrize("kind", [trl.GRPOConfig, trl.RLOOConfig])
def test_every_option_of_trl_is_one_of_ours_or_answered(kind):
    ours = {field.name for field in dataclasses.fields(VisionRewardConfig)}
    for field in dataclasses.fields(kind):
        if field.name not in ours:
            with pytest.raises(TypeError, match=f"VisionRewardConfig takes no {field.name}: .+"):
                VisionRewardConfig("out", **{field.name: None})


@pytest.mark.parametrize("kind", [Trainer, trl.GRPOTrainer, trl.RLOOTrainer])
def test_every_argument_of_their_trainers_is_one_of_ours_or_answered(kind):
    ours = set(inspect.signature(VisionRewardTrainer.__init__).parameters)
    for name in set(inspect.signature(kind.__init__).parameters) - ours:
        with pytest.raises(TypeError, match=f"VisionRewardTrainer takes no {name}: .+"):
            VisionRewardTrainer(tiny_model(), share_of_a, **{name: None})


def test_no_answer_is_about_a_name_that_is_taken_everywhere():
    fields = {field.name for kind in CONFIGS for field in dataclasses.fields(kind)}
    assert not fields & set(OF_CONFIGS)
    taken = [set(inspect.signature(kind.__init__).parameters) for kind in TRAINERS]
    assert not set.intersection(*taken) & set(OF_TRAINERS)


def test_a_misspelt_name_is_told_its_neighbour():
    with pytest.raises(TypeError, match="VisionRewardConfig takes no num_generation. Did you mean num_generations?"):
        VisionRewardConfig("out", num_generation=2)
    with pytest.raises(TypeError, match="VisionMLETrainer takes no train_datasets. Did you mean train_dataset?"):
        VisionMLETrainer(tiny_model(), train_datasets=[])


def test_a_users_subclass_may_take_what_ours_does_not(tmp_path):
    class Collating(VisionRewardTrainer):
        def __init__(self, *args, data_collator=None, **kwargs):
            super().__init__(*args, **kwargs)
            self.given = data_collator

    @dataclasses.dataclass
    class MyConfig(VisionRewardConfig):
        top_k: int = 0

    args = MyConfig(str(tmp_path), report_to="none", use_cpu=True, top_k=3)
    parts = {"args": args, "train_dataset": text_dataset(), "processing_class": text_processor()}
    assert Collating(tiny_model(), share_of_a, data_collator=7, **parts).given == 7
    with pytest.raises(TypeError, match="Collating takes no model_init: pass the model itself"):
        Collating(tiny_model(), share_of_a, model_init=tiny_model, **parts)


# --- options of TrainingArguments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(("name", "value"), [(name, "x") for name in VisionMLEConfig._WITHOUT_EFFECT])
def test_an_option_without_effect_is_refused_with_what_does_it(kind, name, value):
    default = VisionMLEConfig._WITHOUT_EFFECT[name][0]
    given = (not default) if isinstance(default, bool) else [value] if isinstance(default, list) else value
    with pytest.raises(ValueError, match=f"{name}=|{name}"):
        kind("out", **{name: given})
    field = next(field for field in dataclasses.fields(TrainingArguments) if field.name == name)
    theirs = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    assert theirs == default


def test_what_would_let_another_policy_learn_is_of_mle_only():
    for name in ("label_smoothing_factor", "neftune_noise_alpha"):
        with pytest.raises(ValueError, match=f"{name} .*leave it out. It is for VisionMLEConfig"):
            VisionRewardConfig("out", use_cpu=True, **{name: 0.1})
        assert getattr(VisionMLEConfig("out", use_cpu=True, **{name: 0.1}), name) == 0.1


def test_what_would_give_processes_other_rows_is_refused():
    for name in ("split_batches", "dispatch_batches"):
        with pytest.raises(ValueError, match=f"accelerator_config has {name}: "):
            VisionMLEConfig("out", use_cpu=True, accelerator_config={name: True})
    with pytest.raises(ValueError, match="dataloader_in_order must be True"):
        VisionMLEConfig("out", use_cpu=True, dataloader_in_order=False)


def test_a_subclass_may_take_an_option_whose_name_is_near_to_one_of_ours():
    class Mine(VisionMLETrainer):
        def __init__(self, *args, **kwargs):
            self.model_path = kwargs.pop("model_path", None)
            super().__init__(*args, **kwargs)

    with pytest.raises(TypeError) as raised:
        Mine(model_path="here")
    assert "model_path" not in str(raised.value)
