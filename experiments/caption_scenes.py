"""The ground of the experiment with captions of scenes: images of one to three digits, five sentences each, and its model.

Each sentence is true, and each could as well have been another: what an annotator mentions, and in which order, nothing
in the image decides. That is what imitation cannot learn, and what a reward over all five need not.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, VisionEncoderDecoderModel, ViTImageProcessorPil

from vision_rl.data.digit_scenes import DigitScenes
from vision_rl.data.handwriting import Split
from vision_rl.models.description import make_decoder, make_encoder, make_model
from vision_rl.tasks.captioning import CaptioningProcessor, CiderReward, DocumentFrequency


IMAGE_SIZE, MAX_TOKENS = 32, 16
SCENES = {"size": IMAGE_SIZE, "max_digits": 3, "min_height": 14, "max_height": 20}
NUM_COUNTED = 5000  # training scenes of which n-grams are counted for CIDEr
ENCODER = Path(__file__).parent / "checkpoints" / "detection-crowded"  # knows digits, but no colours and no words
COUNTED_SEED = 1000  # of scenes that nothing is trained on


def captioned_scenes(split: Split, length: int, seed: int = 0, **options) -> DigitScenes:
    """Scenes with captions, drawn when asked for: another seed, and none is the same."""
    return DigitScenes(split, length, seed, annotations=("captions",), **SCENES | options)


def captions_of(scenes: DigitScenes) -> list[list[str]]:
    return [scenes.draw(index)[1]["captions"] for index in range(len(scenes))]


def word_tokenizer(captions: Sequence[Sequence[str]]) -> PreTrainedTokenizerFast:
    """One id a word or sign that occurs; 0 is the padding, with which the decoder also starts, 1 the end."""
    split = pre_tokenizers.Whitespace()
    texts = [text for of_image in captions for text in of_image]
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})
    vocabulary = {token: index for index, token in enumerate(["<pad>", "</s>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))  # an unknown word is an error
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.WordPiece(cleanup=True)  # "a 3, a 7"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<pad>", eos_token="</s>")


def make_processor() -> CaptioningProcessor:
    """Knows every word that captions of scenes have, also those of a scene without digits."""
    tokenizer = word_tokenizer(captions_of(captioned_scenes("train", 2000, COUNTED_SEED, min_digits=0)))
    images = ViTImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    return CaptioningProcessor(images, tokenizer, max_caption_length=MAX_TOKENS)


def make_rewards(processor: CaptioningProcessor) -> dict[str, CiderReward]:
    """CIDEr-D with the end of a sentence counted as a word, as one tunes for it, and without, as it is reported."""
    captions = captions_of(captioned_scenes("train", NUM_COUNTED, COUNTED_SEED))
    end = processor.tokenizer.eos_token_id
    return {
        name: CiderReward(DocumentFrequency.from_references(captions, append_eos), append_eos, end)
        for name, append_eos in (("with end", True), ("without end", False))
    }


def captioner(processor: CaptioningProcessor, seed: int) -> VisionEncoderDecoderModel:
    """The encoder of a small detector, three layers of 128 numbers, with a new decoder of two."""
    torch.manual_seed(seed)
    size = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
    encoder = make_encoder(IMAGE_SIZE, size, init=ENCODER)
    return make_model(processor, encoder, make_decoder(processor.vocab_size, MAX_TOKENS, size))
