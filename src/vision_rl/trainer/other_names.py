"""Names that transformers' and TRL's trainers and configs have and ours have not: what to use in place of each.

Python itself would only say that an argument is unexpected.
"""

import difflib
import inspect
from collections.abc import Iterable


OWN_DISTRIBUTION = "samples and greedy completions follow the model's own distribution, of which the gradient is taken; only temperature can be set"
ONE_PASS = "sampling is one pass that encodes each image once and keeps a cache"
OTHER_LOSSES = "the loss is REINFORCE with the clipped ratio (epsilon, epsilon_high, importance_sampling_level)"
REFERENCE = "beta compares with the model as it was before tuning, or with the base under new adapters"
NO_TEXT = "the models that are trained here read images, not chats"
NO_VLLM = "vLLM does not serve encoder-decoders of images; " + ONE_PASS

# Arguments of transformers.Trainer and of TRL's trainers.
OF_TRAINERS = {
    "tokenizer": "it is called processing_class, and is a processor for images as well as text",
    "feature_extractor": "it is called processing_class, and is a processor for text as well as images",
    "image_processor": "it is called processing_class, and is a processor for text as well as images",
    "data_collator": "the trainer makes batches with its processor: define __call__ of a VisionProcessor",
    "model_init": "pass the model itself, because a trainer makes one run",
    "ref_model": REFERENCE + ": set beta in the config",
    "preprocess_logits_for_metrics": "no logits are gathered: compute_metrics is given decoded completions and references",
    "compute_loss_func": "override compute_loss of VisionMLETrainer, or _learn of VisionRewardTrainer",
    "optimizer_cls_and_kwargs": "set optim and optim_args in the config, or give optimizers=(optimizer, scheduler)",
    "formatting_func": "the processor makes the labels from a row",
    "reward_func": "it is called reward_funcs",
    "reward_model": "pass it in reward_funcs: a text classifier of transformers, or its name",
    "reward_fn": "it is called reward_funcs",
    "reward_weights": "set it in the config: VisionRewardConfig(reward_weights=[...])",
    "quantization_config": "load the model quantised and pass it: from_pretrained(name, quantization_config=...)",
    "peft_model": "pass it as model",
    "tools": NO_TEXT,
    "rollout_func": "override _sample of VisionRewardTrainer",
    "environment_factory": NO_TEXT,
    "dataset": "it is called train_dataset",
    "config": "it is called args",
    "metrics": "it is called compute_metrics",
}

# Fields of TRL's GRPOConfig and RLOOConfig, older ones among them, and of former TrainingArguments.
OF_CONFIGS = {
    "max_prompt_length": "set the size of images in the image processor",
    "max_length": "it is called max_completion_length",
    "max_new_tokens": "it is called max_completion_length",
    "num_return_sequences": "it is called num_generations",
    "generation_max_length": "it is called max_completion_length",
    "predict_with_generate": "evaluation always generates where it has compute_metrics",
    "generation_config": "it is the model's: model.generation_config",
    "generation_num_beams": OWN_DISTRIBUTION,
    "evaluation_strategy": "it is called eval_strategy",
    "group_by_length": "shuffle_dataset sets the order of the rows",
    "no_cuda": "it is called use_cpu",
    "kl_coef": "it is called beta",
    "init_kl_coef": "it is called beta",
    "cliprange": "it is called epsilon",
    "dataset_num_proc": "rows are processed when they are read: dataloader_num_workers",
    "num_generations_eval": "an evaluation takes the greedy completion of every row",
    "top_k": OWN_DISTRIBUTION,
    "top_p": OWN_DISTRIBUTION,
    "min_p": OWN_DISTRIBUTION,
    "repetition_penalty": OWN_DISTRIBUTION,
    "generation_kwargs": OWN_DISTRIBUTION,
    "cache_implementation": ONE_PASS,
    "use_transformers_continuous_batching": ONE_PASS,
    "transformers_continuous_batching_config": ONE_PASS,
    "use_transformers_paged": ONE_PASS,
    "cast_lm_head_to_fp32": "the log-probabilities are always computed in float32",
    "pad_to_multiple_of": "completions are padded to the longest one",
    "chat_template_kwargs": NO_TEXT,
    "max_tool_calling_iterations": NO_TEXT,
    "router_aux_loss_coef": "none of the models that are trained here has routers",
    "trust_remote_code": "pass it to from_pretrained: model_init_kwargs={'trust_remote_code': True}",
    "loss_type": OTHER_LOSSES + "; loss_reduction chooses its sum or mean",
    "delta": OTHER_LOSSES,
    "top_entropy_quantile": OTHER_LOSSES,
    "off_policy_mask_threshold": OTHER_LOSSES,
    "use_bias_correction_kl": REFERENCE + ", by the k1 estimator",
    "normalize_advantages": "set scale_rewards='batch'",
    "reward_clip_range": "clip in the reward, or override _advantages",
    "whiten_rewards": "set scale_rewards='batch'",
    "use_adaptive_entropy": "entropy_coef is constant",
    "log_unique_prompts": "rows are drawn in the data set's order: log_completions shows the first of a step",
    "log_completions_hub_repo": "log_completions writes to output_dir/completions, which push_to_hub uploads too",
    "sync_ref_model": REFERENCE + ", which stays as it is",
}
OF_CONFIGS |= dict.fromkeys(("ref_model_mixup_alpha", "ref_model_sync_steps"), OF_CONFIGS["sync_ref_model"])
# Whole families of options.
FAMILIES = {"vllm_": NO_VLLM, "use_vllm": NO_VLLM, "sapo_": OTHER_LOSSES, "vespo_": OTHER_LOSSES}
FAMILIES |= {"entropy_coef_": OF_CONFIGS["use_adaptive_entropy"], "entropy_target": OF_CONFIGS["use_adaptive_entropy"]}


def refuse_other_names(cls: type, given: Iterable[str], base: type, answers: dict[str, str]) -> None:
    """Raises `TypeError`, with what to use instead, for keyword arguments that no class from `cls` to `base` takes.

    Args:
        cls: what is made, perhaps a user's subclass that passes its arguments on.
        given: the names.
        base: the last of ours among its parents.
        answers: by name.
    """
    kinds = [kind for kind in cls.__mro__ if issubclass(kind, base) and "__init__" in vars(kind)]
    parameters = [each for kind in kinds for each in inspect.signature(kind.__init__).parameters.values()]
    taken = {each.name for each in parameters}
    pops = any(each.kind is each.VAR_KEYWORD for each in parameters)  # a subclass may take options of its own
    for name in given:
        if name not in taken:
            instead = answers.get(name) or next(
                (text for start, text in FAMILIES.items() if name.startswith(start)), None
            )
            close = [] if pops else difflib.get_close_matches(name, taken, n=1)
            hint = f": {instead}" if instead else f". Did you mean {close[0]}?" if close else ""
            if hint:
                raise TypeError(f"{cls.__name__} takes no {name}{hint}{'' if hint.endswith('?') else '.'}")
