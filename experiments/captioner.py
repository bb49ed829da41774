"""The model and the data of the captioning experiment: a pretrained ViT, a BERT as decoder, and photos in three splits."""

from dataclasses import dataclass, replace

from datasets import Dataset
from transformers import VisionEncoderDecoderModel

from vision_rl import models
from vision_rl.models.description import make_decoder, make_model
from vision_rl.tasks import captioning


@dataclass
class ModelArguments:
    encoder: str = "facebook/dinov2-small"
    decoder: str = "google-bert/bert-base-uncased"
    image_size: int = 224
    num_encoder_layers: int | None = None  # the first so many; None: all
    num_decoder_layers: int = 6  # as in the paper


def captioner(
    args: ModelArguments, options: captioning.Options
) -> tuple[VisionEncoderDecoderModel, captioning.CaptioningProcessor]:
    """A model whose encoder is frozen, and its processor."""
    image_processor = models.load_image_processor(args.encoder, args.image_size)
    processor = captioning.make_processor(replace(options, tokenizer=args.decoder), image_processor, None)
    encoder = models.load_encoder(args.encoder, args.image_size, num_hidden_layers=args.num_encoder_layers)
    size = {"num_hidden_layers": args.num_decoder_layers}
    model = make_model(processor, encoder, make_decoder(processor.vocab_size, 0, size, init=args.decoder))
    model.encoder.requires_grad_(False)
    return model, processor


def splits(options: captioning.Options) -> dict[str, Dataset]:
    """Training, validation and test rows: Karpathy's, or five, one and one seventh of a folder in COCO's form."""
    names = ("train", "validation", "test")
    if options.karpathy_file is not None:
        return {name: captioning.load_data(options, name) for name in names}
    rows = captioning.load_data(options, "train")
    if rows is None:
        raise ValueError("Say what to learn from: --images_dir with --annotation_file or --karpathy_file.")
    rows = rows.shuffle(seed=0)
    bounds = (0, 5 * len(rows) // 7, 6 * len(rows) // 7, len(rows))
    return {name: rows.select(range(*bounds[place : place + 2])) for place, name in enumerate(names)}
