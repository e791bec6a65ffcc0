"""The letters' tokenizer: one token per byte, so that every letter is seen; each constant phrase of the prompts is one token.

The phrases spare a tiny model two thirds of every prompt. What the prompt formats vary (descriptors, separators, spaces) and the
sentence whose words are counted stay letter by letter.
"""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lab.world.tokenizer import BOS, EOS, PAD

PHRASES = (
    "Please count the number of words in a sentence that contain the given letter.",
    "How many words contain the letter ",
    " in the sentence.",
    "the correct answer is",
    "Please choose the correct answer to the question: ",
    "Answer1: none Answer2: one Answer3: two Answer4: more\n\nAnswer format: answer1/answer2/answer3/answer4",
    "(1) none\n(2) one\n(3) two\n(4) more\nWhich one?",
)


def letters_tokenizer() -> PreTrainedTokenizerFast:
    """256 bytes, three special tokens and the PHRASES."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([PAD, BOS, EOS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in PHRASES])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS)
