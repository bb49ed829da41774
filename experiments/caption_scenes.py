"""Data and model of the experiment with captions of scenes: images of one to three digits with five sentences each.

Every sentence is true, but nothing in the image decides what an annotator mentions, or in which order. Imitation cannot
learn that choice; a reward that compares with all five sentences does not ask for it.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from caption_measures import cider_rewards
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, VisionEncoderDecoderModel, ViTImageProcessorPil

from vision_rl.data.digit_scenes import DigitScenes
from vision_rl.data.handwriting import Split
from vision_rl.models.description import make_decoder, make_encoder, make_model
from vision_rl.tasks.captioning import CaptioningProcessor, CiderReward


IMAGE_SIZE, MAX_TOKENS = 32, 16
SCENES = {"size": IMAGE_SIZE, "max_digits": 3, "min_height": 14, "max_height": 20}
NUM_COUNTED = 5000  # training scenes whose n-grams are counted for CIDEr
ENCODER = Path(__file__).parent / "checkpoints" / "detection-crowded"  # knows digits, but no colours and no words
COUNTED_SEED = 1000  # seed of these scenes; nothing is trained on them


def captioned_scenes(split: Split, length: int, seed: int = 0, **options) -> DigitScenes:
    """Scenes with captions. Each is drawn when it is asked for; two seeds have no scene in common."""
    return DigitScenes(split, length, seed, annotations=("captions",), **SCENES | options)


def captions_of(scenes: DigitScenes) -> list[list[str]]:
    return [scenes.draw(index)[1]["captions"] for index in range(len(scenes))]


def word_tokenizer(captions: Sequence[Sequence[str]]) -> PreTrainedTokenizerFast:
    """One id for each word or sign that occurs. Id 0 is the padding and also starts the decoder; id 1 is the end."""
    split = pre_tokenizers.Whitespace()
    texts = [text for of_image in captions for text in of_image]
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})
    vocabulary = {token: index for index, token in enumerate(["<pad>", "</s>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))  # an unknown word is an error
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.WordPiece(cleanup=True)  # "a 3, a 7"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<pad>", eos_token="</s>")


def make_processor() -> CaptioningProcessor:
    """A processor that knows every word of the captions, including those of a scene without digits."""
    tokenizer = word_tokenizer(captions_of(captioned_scenes("train", 2000, COUNTED_SEED, min_digits=0)))
    images = ViTImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    return CaptioningProcessor(images, tokenizer, max_caption_length=MAX_TOKENS)


def make_rewards(processor: CaptioningProcessor) -> dict[str, CiderReward]:
    """CIDEr-D with and without the end of a sentence, by the captions of scenes that nothing is trained on."""
    return cider_rewards(processor, captions_of(captioned_scenes("train", NUM_COUNTED, COUNTED_SEED)))


def captioner(processor: CaptioningProcessor, seed: int) -> VisionEncoderDecoderModel:
    """The encoder of a small detector (three layers, width 128) with a new decoder of two layers."""
    torch.manual_seed(seed)
    size = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
    encoder = make_encoder(IMAGE_SIZE, size, init=ENCODER)
    return make_model(processor, encoder, make_decoder(processor.vocab_size, MAX_TOKENS, size))
