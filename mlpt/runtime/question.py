"""Questioning over Ray: one task a part of the blocks, on CPUs or GPUs; the model travels once, as shared arrays."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import ray
import torch

from mlpt.config import RuntimeConfig
from mlpt.data.score_parts import check_place
from mlpt.data.token_scores import ScorePart, TokenScores
from mlpt.errors import UserError
from mlpt.models.encoder import Encoder
from mlpt.questioning.config import QuestionConfig
from mlpt.questioning.question import Progress, Task, question, score_part
from mlpt.runtime.cluster import check_resources, needed_cpus, ray_session
from mlpt.storage.files import one_line

_RETRIES = 3
_encoders: dict[str, Encoder] = {}  # of this worker process: the one it scored with last, by its question


def question_on_ray(
    config: QuestionConfig,
    runtime: RuntimeConfig,
    progress: Progress,
    say: Callable[[str], None] = print,
    overwrite: bool = False,
) -> TokenScores:
    """`question` by as many tasks at a time as the runtime has workers, each with a worker's CPUs and GPUs.

    On a cluster, `config.blocks` and `config.out` must be folders or URIs that every node reaches.
    """
    check_place(config.out, overwrite)
    with ray_session(runtime, needed_cpus(runtime)):
        check_resources(runtime, learners=0, say=say)
        return question(config, partial(_run, runtime=runtime), progress, overwrite)


def _run(task: Task, waiting: list[int], runtime: RuntimeConfig) -> Iterator[ScorePart]:
    """Parts as they are committed. A task whose process or node dies is run again, elsewhere if need be."""
    workers = runtime.most_workers
    threads = max(1, int(runtime.cpus_per_worker))
    places = {"num_cpus": runtime.cpus_per_worker, "num_gpus": runtime.gpus_per_worker, "max_retries": _RETRIES}
    score = ray.remote(**places)(_score)
    shared = ray.put(task)
    left, running = iter(waiting), set[Any]()
    while True:
        while len(running) < workers and (number := next(left, None)) is not None:
            running.add(score.remote(shared, number, threads))
        if not running:
            return
        (done, *_), rest = ray.wait(list(running), num_returns=1)
        running = set(rest)
        try:
            yield ray.get(done)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from error
            raise
        except ray.exceptions.RayError as error:  # the process or its node died again and again
            raise UserError(
                f"a task died {_RETRIES + 1} times ({one_line(error)[:120]}); if memory ran out, take fewer workers or "
                "a smaller batch_tokens; the same command goes on"
            ) from error


def _score(task: Task, number: int, threads: int) -> ScorePart:
    torch.set_num_threads(threads)
    name = task.question.digest
    if name not in _encoders:
        _encoders.clear()
        has_gpu = bool(ray.get_runtime_context().get_accelerator_ids().get("GPU"))
        _encoders[name] = task.encoder("cuda" if has_gpu else "cpu")
    return score_part(task, _encoders[name], number)
