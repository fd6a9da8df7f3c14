"""The peer of our training: steps by the stock `Trainer` of transformers with its defaults, which writes nothing."""

import time
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from mlpt.bench.harness import wait_for_device


class StockTrainer:
    """`steps` are those of one timing, after one that is not counted; `parts` the trainer's model, data."""

    def __init__(self, folder: str, steps: int, batch_size: int, learning_rate: float, **parts: Any) -> None:
        self._clock, self._steps = _Clock(), steps
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps + 1,
            per_device_train_batch_size=batch_size,
            learning_rate=learning_rate,
            max_grad_norm=1.0,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        self._trainer = Trainer(args=arguments, callbacks=[self._clock], **parts)
        self._trainer.remove_callback(PrinterCallback)  # it writes to the standard output, where our rows go
        self._rounds = 0

    def seconds(self) -> float:
        """Mean seconds of a step; every call draws other rows."""
        self._rounds += 1
        self._trainer.args.seed = self._trainer.args.data_seed = self._rounds
        self._trainer.optimizer = self._trainer.lr_scheduler = None
        self._trainer.train()
        return (self._clock.times[-1] - self._clock.times[0]) / self._steps


class _Clock(TrainerCallback):
    """Notes when each step ended."""

    def on_train_begin(self, args, state, control, **_):
        self.times: list[float] = []

    def on_step_end(self, args, state, control, **_):
        wait_for_device()
        self.times.append(time.perf_counter())
