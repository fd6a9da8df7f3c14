"""Labelled tasks: what they are, where their rows come from, and how malformed rows are told."""

from mlpt.tasks.own import OwnTask, read_task_file
from mlpt.tasks.sources import TASKS, TaskSource, load_task, task_of, whole_task
from mlpt.tasks.task import Example, Task, TaskData

__all__ = [
    "TASKS",
    "Example",
    "OwnTask",
    "Task",
    "TaskData",
    "TaskSource",
    "load_task",
    "read_task_file",
    "task_of",
    "whole_task",
]
