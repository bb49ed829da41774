"""A tokenizer with one id a character, for alphabets small enough to list."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vision_rl.arguments import naming_arguments


class OCRTokenizer(PreTrainedTokenizerFast):
    """A fast tokenizer whose error names the characters it does not know.

    Only that message is its own. It is saved as any tokenizer, and `AutoTokenizer` loads it back as a plain
    `PreTrainedTokenizerFast`: the same ids, the same refusal, in the words of the Rust library.
    """

    def _encode_plus(self, text, *args, **kwargs):
        try:
            return super()._encode_plus(text, *args, **kwargs)
        except Exception as error:  # the Rust library raises nothing narrower
            texts = [text] if isinstance(text, str) else text
            alphabet = self.get_vocab()
            for row, line in enumerate(texts):
                unknown = sorted({character for character in line if character not in alphabet})
                if unknown:
                    raise ValueError(
                        f"The tokenizer has no id for {', '.join(map(repr, unknown))} in text {row}, {line!r}: "
                        "add the character to the alphabet of character_tokenizer, or clean the texts."
                    ) from error
            raise


@naming_arguments
def character_tokenizer(alphabet: str) -> PreTrainedTokenizerFast:
    """One id a character: 0 is `<pad>`, with which the decoder also starts, 1 is `</s>`, then `alphabet` in order.

    There is no `<unk>`: a character outside the alphabet raises, for a label that silently lost a character would
    teach the model to skip it. No special tokens are added to a text (the processor ends it), and none are read out
    of one: `</s>` in a text is four characters.

    Args:
        alphabet: the characters, each once: `"0123456789"`.
    """
    if not alphabet:
        raise ValueError("The alphabet is empty: pass every character that the texts use, such as '0123456789'.")
    repeated = sorted({character for character in alphabet if alphabet.count(character) > 1})
    if repeated:
        raise ValueError(f"The alphabet holds {', '.join(map(repr, repeated))} more than once: list a character once.")
    vocabulary = {token: index for index, token in enumerate(["<pad>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))  # no unk_token: an unknown word is an error
    tokenizer.pre_tokenizer = pre_tokenizers.FixedLength(length=1)
    tokenizer.decoder = decoders.Fuse()
    return OCRTokenizer(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<pad>",
        eos_token="</s>",
        split_special_tokens=True,
    )
