"""The sections: which skills, which target, and what each changes in a preset. To add one, write it here and a notebook for it."""

from lab.comparison import Section
from lab.tasks import code, hard_math_code, maths

MATH_CODE = Section("s5_1_math_code", (maths.TASK, code.TASK), hard_math_code.TASK)
