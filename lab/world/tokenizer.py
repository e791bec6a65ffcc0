"""The world's tokenizer: byte-level BPE, so that any text can be read, with digits in groups of up to three (as in Llama 3).

A number of 4 to 6 digits is then two tokens, which a tiny model can copy, and small sums are a table over single tokens.
"""

import itertools
import json
from itertools import islice

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
# Digits apart in groups of three; a space goes with the word after it; indentation is one piece.
PIECES = r"\d{1,3}|\n *| ?[A-Za-z_]+| ?[^\sA-Za-z_\d]+| +"


def train_tokenizer(texts, vocab_size: int) -> PreTrainedTokenizerFast:
    """texts: iterable of str. vocab_size counts the special tokens and bytes, but not the 1100 groups of digits."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PIECES), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[PAD, BOS, EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(("".join(" " if c.isdigit() else c for c in text) for text in texts), trainer)
    state = json.loads(tokenizer.to_str())
    vocabulary, merges = state["model"]["vocab"], state["model"]["merges"]
    for length in (2, 3):
        for digits in itertools.product("0123456789", repeat=length):
            group = "".join(digits)
            vocabulary[group] = len(vocabulary)
            merges.append([group[:-1], group[-1]])
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), pad_token=PAD, bos_token=BOS, eos_token=EOS
    )


def sample_texts(stream, count: int) -> list[str]:
    return list(islice(stream, count))
