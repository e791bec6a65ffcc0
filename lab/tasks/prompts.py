"""One template per task, for training and evaluation alike. The completion starts right after the prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lab.errors import LabError
from lab.tasks.task import Example

MATHS = "Question: {text}\nAnswer:"
CODE = "Question: {text}\nProgram:\n"
HARD_MATH_CODE = CODE  # a word problem, as in MATHS, that asks for a program
TERMS = ""  # text is learned as it stands
MANUAL = TERMS
INSTRUCTION = "Question: {text}\nReply:"
MANUAL_QA = INSTRUCTION
OPEN_BOOK = "Passage: {text}\n"  # what retrieval found, before a question
READING = "Passage: {text}\nAnswer:"  # a passage, and on its next line "Question: " and a question
CHOICE_1 = "Please choose the correct answer to the question: {text}\n\n{choices}\n\nAnswer format: {names}"  # LLM-Adapters'
CHOICE_1_OF = {  # LLM-Adapters' words for what is not called an answer, and what stands between two choices
    "solution": ("Please choose the correct solution to the question: {text}\n\n{choices}\n\nAnswer format: {names}", "\n\n"),
    "ending": ("Please choose the correct ending to complete the given sentence: {text}\n\n{choices}\n\nAnswer format: {names}", " "),
    "option": (
        "Please choose the correct answer to fill in the blank to complete the given sentence: {text}\n\n{choices} Answer format: {names}",
        " ",
    ),
}  # fmt: skip
CHOICE_2 = "Question: {text}\n{choices}\nWhich one?\n\n"


def demonstrate(template: str, shots) -> str:
    """Worked examples (text, completion) in the task's own template, to stand before a prompt of that template."""
    return "".join(template.format(text=text) + completion + "\n\n" for text, completion in shots)


def chat(tokenizer, said: str | Sequence[Mapping[str, str]]) -> str:
    """A text as a user's turn, or turns (role, content), in the tokenizer's chat template, up to where the answer begins. Raises
    LabError where there is no template."""
    if not tokenizer.chat_template:
        raise LabError("The base's tokenizer has no chat template; set chat to False, or take an instruction-tuned base.")
    turns = [{"role": "user", "content": said}] if isinstance(said, str) else list(said)
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def in_chat(tokenizer, example: Example) -> Example:
    """An example put to an instruction-tuned base: its prompt in `chat`; answers lose the space that set them off from a prompt.

    Without a prompt it is text to be learned as it stands, and stays so.
    """
    if not example.prompt:
        return example
    choices = tuple(map(_unspaced, example.choices))
    return replace(example, prompt=chat(tokenizer, example.prompt), completion=_unspaced(example.completion), choices=choices)


def _unspaced(text: str) -> str:
    """Without a single space at its beginning; several are an indentation."""
    return text[1:] if text.startswith(" ") and not text.startswith("  ") else text
