"""One template per task, for training and evaluation alike. The completion starts right after the prompt."""

MATHS = "Question: {text}\nAnswer:"
CODE = "Question: {text}\nProgram:\n"
HARD_MATH_CODE = CODE  # a word problem, as in MATHS, that asks for a program


def demonstrate(template: str, shots) -> str:
    """Worked examples (text, completion) in the task's own template, to stand before a prompt of that template."""
    return "".join(template.format(text=text) + completion + "\n\n" for text, completion in shots)
