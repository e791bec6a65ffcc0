"""Chat templates: training, evaluation and the app read the same prompt."""

import pytest

from lab.app.compare import CHAT, wrap
from lab.app.showcase import of_base
from lab.errors import LabError
from lab.evaluation import evaluate as evaluation
from lab.evaluation.scorers import Verdict
from lab.experiments.context import RunContext
from lab.experiments.presets import get_preset
from lab.tasks import Example, Task
from lab.tasks.prompts import MATHS, chat, in_chat
from lab.training.loop import encode_prompt
from lab.training.lora import encode_examples
from lab.world.letters.tokenizer import letters_tokenizer

TEMPLATE = (  # as instruction-tuned bases have it: it brings the beginning-of-text token along
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def tokenizer():
    found = letters_tokenizer()
    found.chat_template = TEMPLATE
    return found


EXAMPLE = Example("1", MATHS.format(text="How many?"), " Five.", ("Five.",), choices=(" Five.", " Six."))
SHOWN = of_base("embedded")
TASK = Task("told", 1, "Told", MATHS, lambda *_: [], lambda completions, examples: [Verdict("right", 1.0, "")] * len(examples), 8)


def test_training_and_evaluation_read_the_same_prompt(tokenizer, monkeypatch):
    """The ids of the prompt in a training row, and those that generation begins with."""
    read = []

    def generate(model, tokenizer, prompts, **options):
        read.extend(encode_prompt(tokenizer, prompt) for prompt in prompts)
        return [""] * len(prompts)

    monkeypatch.setattr(evaluation, "generate", generate)
    monkeypatch.setattr(evaluation, "most_likely", lambda model, tokenizer, prompts, choices, **_: [0] * len(prompts))
    found = evaluation.evaluate(None, tokenizer, TASK, [EXAMPLE], evaluation.Decoding(chat=True))
    (row,) = encode_examples(tokenizer, [EXAMPLE], 10**6, chat=True)
    assert [list(row.ids[: row.prompt_length])] == read
    assert row.ids.count(tokenizer.bos_token_id) == 1 and row.ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(row.ids[row.prompt_length : -1]) == "Five."
    assert found.rows[0]["prompt"] == chat(tokenizer, EXAMPLE.prompt)  # the record tells what was read
    assert encode_prompt(tokenizer, wrap(SHOWN, "How many?", "Question → answer in words", tokenizer, chat=True)) == read[0]  # the app


def test_the_app_puts_a_users_words_as_asked(tokenizer):
    assert wrap(SHOWN, "How many?", CHAT, tokenizer) == chat(tokenizer, "How many?")
    assert wrap(SHOWN, "How many?", "as typed", tokenizer, chat=True) == "How many?"


def test_without_chat_nothing_changes(tokenizer):
    (row,) = encode_examples(tokenizer, [EXAMPLE], 10**6)
    assert list(row.ids[: row.prompt_length]) == encode_prompt(tokenizer, EXAMPLE.prompt)


def test_answers_lose_the_space_that_set_them_off_but_keep_an_indentation(tokenizer):
    said = in_chat(tokenizer, EXAMPLE)
    assert said.completion == "Five." and said.choices == ("Five.", "Six.") and said.targets == EXAMPLE.targets
    assert in_chat(tokenizer, Example("2", "def f():", "    return 1")).completion == "    return 1"


def test_text_to_be_learned_as_it_stands_is_no_turn(tokenizer):
    text = Example("3", "", " Once there was a text.")
    assert in_chat(tokenizer, text) == text


def test_a_base_without_a_template_is_named(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(LabError, match="no chat template"):
        in_chat(tokenizer, EXAMPLE)


def test_a_presets_chat_reaches_training_decoding_and_keys(tokenizer):
    plain = RunContext(None, get_preset("embedded"), 0, None, None, tokenizer)
    chatting = plain.change(chat=True)
    assert chatting.encoded([EXAMPLE]) == encode_examples(tokenizer, [EXAMPLE], 256, chat=True) != plain.encoded([EXAMPLE])
    assert chatting.decoding.chat and not plain.decoding.chat
    assert chatting.on_base == {**plain.on_base, "chat": True}
    with pytest.raises(LabError, match="chat is 'yes'"):
        get_preset("embedded", chat="yes")
