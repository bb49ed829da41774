"""The options of the commands, in groups. The task's own and the trainer's join them; importing this loads no torch."""

from dataclasses import dataclass, field
from typing import Any, Literal


def option(help: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class TaskArguments:
    _argument_group_name = "Task"

    task: str | None = option(
        "One of ours (detection, panoptic, colorization, captioning, ocr) or a file of yours, my_task.py. None: the model's."
    )


@dataclass
class DataArguments:
    _argument_group_name = "Data"

    dataset_name: str | None = option(
        "Rows from the Hub, or a folder: made by `vision-rl prepare`, by save_to_disk, or with Parquet files. None: the "
        "folders that the task's own options name."
    )
    dataset_config: str | None = option("Its configuration.")
    dataset_train_split: str = option("Its split for training.", "train")
    dataset_test_split: str = option("Its split for evaluation.", "validation")
    dataset_streaming: bool = option("Train on it as it comes, without a copy on disk; set max_steps.", False)
    max_train_rows: int | None = option("Train on the first so many rows.")
    max_eval_rows: int | None = option("Evaluate on the first so many rows.")


@dataclass
class RunArguments:
    _argument_group_name = "Run"

    dry_run: bool = option(
        "Build model and optimizer without memory for them, and print sizes, memory, and what is missing.", False
    )


@dataclass
class ModelArguments:
    """A model for MLE: one to go on from, or a new one by its sizes."""

    _argument_group_name = "Model"

    model: str | None = option(
        "Go on from this model, a folder or Hub name, at the sizes that are given here. None: a new one."
    )
    model_revision: str | None = option("Branch, tag or commit of a model on the Hub.")
    stage1: str | None = option("A task with codes: folder or Hub name of stage I. None: that of `model`.")
    image_size: int | None = option("Pixels of a side. None: those of `model` or stage I; 224 for a new one.")
    encoder: str = option("Size of a new encoder: vit-ti16, vit-s16, vit-b16, vit-l16.", "vit-b16")
    encoder_init: str | None = option(
        "Weights of a new model's encoder: folder or Hub name of a SigLIP, ViT, DINOv2 or of a model of ours, or "
        "big_vision's npz."
    )
    encoder_hidden_size: int | None = option("In place of the size's.")
    encoder_layers: int | None = option("In place of the size's; of encoder_init, the first so many.")
    encoder_heads: int | None = option("In place of the size's.")
    encoder_mlp_size: int | None = option("In place of the size's.")
    patch_size: int = option("Pixels of a side of a new encoder's patches.", 16)
    conv_stem: bool = option(
        "Patches by small convolutions: a small encoder that is trained from scratch needs them.", False
    )
    sincos_positions: bool = option("Where a new model's learned positions start; the paper's start at random.", False)
    freeze_encoder: bool = option("Train the decoder alone.", False)
    decoder: str = option("Size of a new decoder: vit-ti16, vit-s16, vit-b16, vit-l16.", "vit-b16")
    decoder_init: str | None = option("Folder or Hub name of a text model (BERT, GPT-2). None: the paper's, new.")
    decoder_hidden_size: int | None = option("In place of the size's.")
    decoder_layers: int | None = option("In place of the size's; 6 is the paper's for detection and captions.", 6)
    decoder_heads: int | None = option("In place of the size's.")
    decoder_mlp_size: int | None = option("In place of the size's.")


@dataclass
class Stage1Arguments:
    """UViM's stage I; the defaults are the published models'."""

    _argument_group_name = "Model: stage I"

    image_size: int = option("Pixels of a side.", 512)
    patch_size: int = option("Pixels of a side of a patch.", 16)
    hidden_size: int = option("Width.", 768)
    encoder_layers: int = option("Of the network that writes codes.", 6)
    decoder_layers: int = option("Of the network that reads them.", 12)
    heads: int = option("Attention heads.", 12)
    mlp_size: int = option("Of the MLPs.", 3072)
    code_dropout: Literal["random", "ordered", "none"] = option("Which codes the decoder learns without.", "random")
    codebook_momentum: float = option("Of the codebook's sums.", 0.995)


@dataclass
class TuneArguments:
    _argument_group_name = "Reward tuning"

    model: str | None = option("The MLE model that is tuned: a folder or Hub name.")
    model_revision: str | None = option("Branch, tag or commit of a model on the Hub.")
    reward: list[str] | None = field(
        default=None,
        metadata={
            "help": "One or several: the task's names, my_rewards.py:function, or the path of an evaluate module; their weights are "
            "reward_weights. None: the task's, if it has one."
        },
    )
    freeze_encoder: bool = option("Tune the decoder alone.", False)


@dataclass
class LookingArguments:
    """What the commands that look at a model have in common."""

    model: str | None = option("The model: a folder or Hub name.")
    model_revision: str | None = option("Branch, tag or commit of a model on the Hub.")
    image_column: str = option("Column with the image.", "image")
    target_columns: dict | str | None = field(
        default=None,
        metadata={"help": "As of the training: which column holds what the processor calls by a keyword."},
    )
    split: str = option("Of the task's folders: train, validation or test.", "validation")
    bf16: bool = option("Compute in bfloat16.", False)
    use_cpu: bool = option("Also where there is a GPU.", False)


@dataclass
class EvalArguments(LookingArguments):
    _argument_group_name = "Evaluation"

    model: str | None = option("What is evaluated: a folder or Hub name.")
    output_dir: str | None = option("Folder of the results. None: `eval` in the model's folder.")
    shard_size: int = option("Images after which results are written; an interrupted evaluation goes on there.", 500)
    batch_size: int = option("Images that a device answers at once.", 32)
    workers: int = option("Processes that read images.", 0)


@dataclass
class PredictArguments:
    _argument_group_name = "Prediction"

    model: str | None = option("The model: a folder or Hub name.")
    model_revision: str | None = option("Branch, tag or commit of a model on the Hub.")
    images: list[str] | None = field(default=None, metadata={"help": "Files, folders and globs of images."})
    output_dir: str = option("Folder of the results and the drawings.", "predictions")
    draw: bool = option("Draw each answer into its image.", True)
    batch_size: int = option("Images that are answered at once.", 16)
    use_cpu: bool = option("Also where there is a GPU.", False)


@dataclass
class AnalyzeArguments(LookingArguments):
    _argument_group_name = "Analysis"

    model: str | None = option("What is looked at: a folder or Hub name.")
    before: str | None = option("Another model to compare it with, such as the one that it was tuned from.")
    before_revision: str | None = option("Branch, tag or commit of that model on the Hub.")
    reward: list[str] | None = field(default=None, metadata={"help": "As of `vision-rl tune`."})
    reward_weights: list[float] | None = field(default=None, metadata={"help": "As of `vision-rl tune`."})
    num_images: int = option("Look at the first so many rows.", 64)
    num_samples: int = option("Samples an image; the paper's figure has 10,000.", 100)
    completions_at_once: int = option("Most of them that are in memory at the same time; of large maps, fewer.", 256)
    noise: bool = option("In their place, how noisy the gradients of tuning are, on training images.", False)
    num_batches: int = option("Of the noise: batches whose gradients are compared.", 60)
    num_generations: int = option("Of the noise: samples an image.", 4)
    batch_size: int = option("Images that are answered at once; of the noise, those of a batch.", 16)
    output_dir: str | None = option("Folder of the figures and numbers. None: `analysis` in the model's folder.")
    seed: int = option("Of the samples.", 42)


@dataclass
class ReportArguments(LookingArguments):
    _argument_group_name = "Report"

    model: str | None = option("The model whose answers are shown. None: that of the run.")
    before: str | None = option("The one that it is compared with. None: the one that the run started from.")
    before_revision: str | None = option("Branch, tag or commit of that model on the Hub.")
    reward: list[str] | None = field(default=None, metadata={"help": "As of `vision-rl tune`. None: the run's."})
    reward_weights: list[float] | None = field(default=None, metadata={"help": "As of `vision-rl tune`."})
    num_images: int = option("Answer the first so many rows.", 200)
    output_file: str | None = option("Of the page. None: report.html in the run's folder.")
    batch_size: int = option("Images that a device answers at once.", 32)


@dataclass
class PrepareArguments:
    _argument_group_name = "Preparation"

    output_dir: str | None = option("The data set's folder.")
    license: str | None = option(
        "Of the images and annotations, for the card: an id as the Hub lists them, cc-by-4.0."
    )
    source: str | None = option("Where they are from, for the card.")
    push_to_hub: str | None = option("Also put it there: user/name.")
    private: bool = option("On the Hub, for you alone.", False)
    shard_size: str = option("Largest Parquet file.", "500MB")
