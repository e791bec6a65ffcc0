"""Tasks: one file each, with its data, prompt and scorer."""

from lab.tasks.task import Example, Task, by_target

__all__ = ["Example", "Task", "by_target"]
