"""One template per task, for training and evaluation alike. The completion starts right after the prompt."""

MATHS = "Problem: {text}\nAnswer:"
CODE = "Instruction: {text}\nProgram:\n"
HARD_MATH_CODE = "Problem: {text}\nProgram:\n"  # the maths skill's way to pose a problem, the code skill's way to ask


def demonstrate(template: str, shots) -> str:
    """Worked examples (text, completion) in the task's own template, to stand before a prompt of that template."""
    return "".join(template.format(text=text) + completion + "\n\n" for text, completion in shots)
