"""The options of the commands, in groups. The task's own and the trainer's join them; importing this loads no torch."""

from dataclasses import dataclass, field
from typing import Any, Literal


def option(help: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": help})


def require_positive(options: Any, *names: str) -> None:
    """None of these numbers is below 1; None counts as not given.

    Raises:
        ValueError: with the name of the first that is.
    """
    for name in names:
        number = getattr(options, name)
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1; it is {number}.")


@dataclass
class NewTaskArguments:
    """The task of a command that takes no model, from which it could be told."""

    _argument_group_name = "Task"

    task: str | None = option(
        "The task: detection, panoptic, colorization, captioning, ocr, or a file of your own such as my_task.py."
    )


@dataclass
class TaskArguments(NewTaskArguments):
    task: str | None = option(
        "The task: detection, panoptic, colorization, captioning, ocr, or a file of your own such as my_task.py. None: the "
        "task of the model."
    )


@dataclass
class DataArguments:
    _argument_group_name = "Data"

    dataset_name: str | None = option(
        "The data set: its name on the Hub, or a folder that `vision-rl prepare` or save_to_disk wrote, or one of Parquet "
        "files. None: the folders that the task's own options name."
    )
    dataset_config: str | None = option("Configuration of the data set.")
    dataset_train_split: str = option("Split of the data set for training.", "train")
    dataset_test_split: str = option("Split of the data set for evaluation.", "validation")
    dataset_streaming: bool = option("Stream the training rows, without a copy on disk; set max_steps.", False)
    max_train_rows: int | None = option("Train on this many rows only, the first ones. None: all.")
    max_eval_rows: int | None = option("Evaluate on this many rows only, the first ones. None: all.")


@dataclass
class RunArguments:
    _argument_group_name = "Run"

    dry_run: bool = option(
        "Print sizes, memory and what is missing, and stop; the model and optimizer are built without memory for them.",
        False,
    )


@dataclass
class ModelArguments:
    """A model for MLE: one to go on from, or a new one by its sizes."""

    _argument_group_name = "Model"

    model: str | None = option(
        "Model to go on from, a folder or Hub name, at the sizes that are given here. None: a new model."
    )
    model_revision: str | None = option("Branch, tag or commit of `model` on the Hub.")
    stage1: str | None = option("Folder or Hub name of stage I, for a task with codes. None: stage I of `model`.")
    image_size: int | None = option(
        "Height and width of an image in pixels. None: as `model` or stage I has it; 224 for a new model."
    )
    encoder: str = option("Size of a new encoder: vit-ti16, vit-s16, vit-b16, vit-l16.", "vit-b16")
    encoder_init: str | None = option(
        "Weights for the encoder of a new model: folder or Hub name of a SigLIP, ViT, DINOv2 or vision_rl model, or an npz "
        "file of big_vision."
    )
    encoder_hidden_size: int | None = option("Hidden size of the encoder. None: as `encoder` says.")
    encoder_layers: int | None = option(
        "Number of layers of the encoder; of encoder_init, the first ones are kept. None: as `encoder` says."
    )
    encoder_heads: int | None = option("Number of attention heads of the encoder. None: as `encoder` says.")
    encoder_mlp_size: int | None = option("Hidden size of the encoder's MLPs. None: as `encoder` says.")
    patch_size: int = option("Height and width of a new encoder's patches, in pixels.", 16)
    conv_stem: bool = option(
        "Make patches with small convolutions, which a small encoder needs when it is trained from scratch.", False
    )
    sincos_positions: bool = option(
        "Start the learned positions of a new model from sines and cosines; the paper's start at random.", False
    )
    freeze_encoder: bool = option("Train only the decoder.", False)
    decoder: str = option("Size of a new decoder: vit-ti16, vit-s16, vit-b16, vit-l16.", "vit-b16")
    decoder_init: str | None = option(
        "Folder or Hub name of a text model (BERT, GPT-2) that becomes the decoder. None: a new decoder, the paper's."
    )
    decoder_hidden_size: int | None = option("Hidden size of the decoder. None: as `decoder` says.")
    decoder_layers: int | None = option(
        "Number of layers of the decoder; the paper has 6 for detection and captions. None: as `decoder` says.", 6
    )
    decoder_heads: int | None = option("Number of attention heads of the decoder. None: as `decoder` says.")
    decoder_mlp_size: int | None = option("Hidden size of the decoder's MLPs. None: as `decoder` says.")


@dataclass
class Stage1Arguments:
    """UViM's stage I; the defaults are the published models'."""

    _argument_group_name = "Model: stage I"

    image_size: int = option("Height and width of an image in pixels.", 512)
    patch_size: int = option("Height and width of a patch in pixels.", 16)
    hidden_size: int = option("Width.", 768)
    encoder_layers: int = option("Number of layers of the network that writes codes.", 6)
    decoder_layers: int = option("Number of layers of the network that reads codes.", 12)
    heads: int = option("Attention heads.", 12)
    mlp_size: int = option("Hidden size of the MLPs.", 3072)
    code_dropout: Literal["random", "ordered", "none"] = option(
        "Codes that the decoder must do without in training: random ones, the last ones (ordered), or none.", "random"
    )
    codebook_momentum: float = option("Momentum of the codebook's running sums.", 0.995)


@dataclass
class TuneArguments:
    _argument_group_name = "Reward tuning"

    model: str | None = option("The MLE model to tune: a folder or Hub name.")
    model_revision: str | None = option("Branch, tag or commit of `model` on the Hub.")
    reward: list[str] | None = field(
        default=None,
        metadata={
            "help": "One reward or several, each by its name in the task, as my_rewards.py:function, or as the path of an "
            "evaluate module; reward_weights weighs them. None: the task's reward, if it has only one."
        },
    )
    freeze_encoder: bool = option("Tune only the decoder.", False)


@dataclass
class LookingArguments:
    """What the commands that look at a model have in common."""

    model: str | None = option("The model: a folder or Hub name.")
    model_revision: str | None = option("Branch, tag or commit of `model` on the Hub.")
    image_column: str = option("Column with the image.", "image")
    target_columns: dict | str | None = field(
        default=None,
        metadata={"help": "The column for each target keyword of the processor, as in training."},
    )
    split: str | None = option(
        "Split to read: of the task's folders train, validation or test; of a data set one of its own. None: validation, "
        "or dataset_test_split."
    )
    bf16: bool = option("Compute in bfloat16.", False)
    use_cpu: bool = option("Use the CPU even where there is a GPU.", False)


@dataclass
class EvalArguments(LookingArguments):
    _argument_group_name = "Evaluation"

    model: str | None = option("The model to evaluate: a folder or Hub name.")
    output_dir: str | None = option("Folder for the results. None: `eval` in the model's folder.")
    shard_size: int = option(
        "Number of images after which results are written; an interrupted evaluation goes on from there.", 500
    )
    batch_size: int = option("Number of images that each device answers at once.", 32)
    workers: int = option("Number of processes that read images.", 0)


@dataclass
class PredictArguments:
    _argument_group_name = "Prediction"

    model: str | None = option("The model: a folder or Hub name.")
    model_revision: str | None = option("Branch, tag or commit of `model` on the Hub.")
    images: list[str] | None = field(default=None, metadata={"help": "Image files, folders of images, and globs."})
    output_dir: str = option("Folder for the results and the drawings.", "predictions")
    draw: bool = option("Draw each answer into its image.", True)
    batch_size: int = option("Number of images that are answered at once.", 16)
    use_cpu: bool = option("Use the CPU even where there is a GPU.", False)


@dataclass
class AnalyzeArguments(LookingArguments):
    _argument_group_name = "Analysis"

    model: str | None = option("The model to look at: a folder or Hub name.")
    before: str | None = option("Another model to compare it with, such as the one that it was tuned from.")
    before_revision: str | None = option("Branch, tag or commit of `before` on the Hub.")
    reward: list[str] | None = field(default=None, metadata={"help": "The rewards, as for `vision-rl tune`."})
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "Weights of the rewards, as for `vision-rl tune`."}
    )
    num_images: int = option("Number of images to look at, the first rows.", 64)
    num_samples: int = option("Number of samples per image; the paper's figure has 10,000.", 100)
    completions_at_once: int = option("Most samples in memory at the same time; lower it for large maps.", 256)
    noise: bool = option(
        "In place of the samples, measure on training images how noisy the gradients of tuning are.", False
    )
    num_batches: int = option("With noise: number of batches whose gradients are compared.", 60)
    num_generations: int = option("With noise: number of samples per image.", 4)
    batch_size: int = option("Number of images that are answered at once; with noise, images per batch.", 16)
    output_dir: str | None = option("Folder for the figures and numbers. None: `analysis` in the model's folder.")
    seed: int = option("Seed of the samples.", 42)


@dataclass
class ReportArguments(LookingArguments):
    _argument_group_name = "Report"

    model: str | None = option("The model whose answers are shown. None: the model of the run.")
    before: str | None = option("The model to compare it with. None: the model that the run started from.")
    before_revision: str | None = option("Branch, tag or commit of `before` on the Hub.")
    reward: list[str] | None = field(
        default=None, metadata={"help": "The rewards, as for `vision-rl tune`. None: those of the run."}
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "Weights of the rewards, as for `vision-rl tune`."}
    )
    num_images: int = option("Number of images to answer, the first rows.", 200)
    output_file: str | None = option("File of the page. None: report.html in the run's folder.")
    batch_size: int = option("Number of images that each device answers at once.", 32)


@dataclass
class PrepareArguments:
    _argument_group_name = "Preparation"

    output_dir: str | None = option("Folder to write the data set to.")
    image_column: str = option("Column with the image; it is written as `image`.", "image")
    target_columns: dict | str | None = field(
        default=None,
        metadata={"help": "The column for each target keyword of the processor; it is written under the keyword."},
    )
    license: str | None = option(
        "License of the images and annotations, for the dataset card: an id of the Hub's list, such as cc-by-4.0."
    )
    source: str | None = option("Where the images and annotations are from, for the dataset card.")
    push_to_hub: str | None = option("Also upload the data set to the Hub, as user/name.")
    private: bool = option("Let nobody else see the data set on the Hub.", False)
    shard_size: str = option("Largest size of a Parquet file.", "500MB")
