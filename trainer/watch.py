"""What looks on while the Trainer runs: progress, a loss that is no number, the best epoch so far."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from edgewise.errors import TrainingError
from edgewise.files import write_json
from edgewise.metrics import Score
from edgewise.progress import Progress


def plain(scores: Mapping[str, Score]) -> dict[str, float]:
    """Name -> value of those that have one."""
    return {name: s.value for name, s in scores.items() if s.value is not None}


class WatchedTrainer(Trainer):
    """transformers.Trainer that keeps the loss of every step, tells how far it is, and stops when a loss is no number.

    progress: called as (step, steps, what). losses: of the steps before a resumption.
    """

    def __init__(
        self, *, progress: Progress | None = None, what: str = "", losses: Sequence[float] = (), **options: Any
    ) -> None:
        super().__init__(**options)
        self.losses = list(losses)
        self.remove_callback(PrinterCallback)
        if progress is not None:
            self.add_callback(_Tell(progress, what, self.losses))

    def training_step(self, *args: Any, **options: Any) -> Any:
        loss = super().training_step(*args, **options)
        value = float(loss)
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {self.state.global_step + 1} with learning rate "
                f"{self._get_learning_rate():.2g}: try a lower learning_rate, more warmup, or another seed"
            )
        self.losses.append(value)
        return loss


class _Tell(TrainerCallback):
    """Tells how far training is."""

    def __init__(self, progress: Progress, what: str, losses: list[float]) -> None:
        self.progress, self.what, self.losses = progress, what, losses

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        last = self.losses[-20:]
        self.progress(state.global_step, state.max_steps, f"{self.what}, loss {sum(last) / len(last):.3f}")


def precision(cuda: Any = torch.cuda) -> dict[str, bool]:
    """On a CUDA GPU where there is one, in bf16, or in fp16 where the GPU does not compute bf16 itself; else on the CPU
    in fp32. The weights stay fp32 in any case; what is meant is the arithmetic (autocast).

    cuda: torch.cuda, or what answers as it does.
    """
    if not cuda.is_available():
        return {"use_cpu": True, "bf16": False, "fp16": False}
    bf16 = bool(cuda.is_bf16_supported(including_emulation=False))  # emulated, it is slower than fp16
    return {"use_cpu": False, "bf16": bf16, "fp16": not bf16}


def precision_name(args: Any) -> str:
    """'bf16', 'fp16' or 'fp32', of TrainingArguments."""
    return "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"


def training_arguments(folder: Path, **options: Any) -> TrainingArguments:
    """What every training here has in common, and its own options.

    Where and in which precision is `precision`'s answer. Checkpoints are asked for by time
    (edgewise.trainer.checkpoints), and the loss of every step is kept by WatchedTrainer.
    """
    chosen = precision()
    return TrainingArguments(
        output_dir=str(folder),
        **chosen,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=not chosen["use_cpu"],
        remove_unused_columns=False,
        **options,
    )


def quiet() -> None:
    """A fresh head on a pretrained body is what fine-tuning means; transformers need not warn of it."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


class BestEpoch(TrainerCallback):
    """Evaluates after each epoch, keeps the trained weights of the best one on disk, and stops when it is long past.

    On disk, so that a training that is killed and started again still knows which epoch was best.
    """

    def __init__(self, folder: Path, evaluate: Callable[[], Mapping[str, Score]], patience: int) -> None:
        self.folder, self.evaluate, self.patience = folder, evaluate, patience
        self.metrics: dict[str, float] = {}

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        epoch = round(state.epoch, 3)
        history = [h for h in self._history() if h["epoch"] < epoch]  # a resumed training runs an epoch's end again
        found = self.evaluate()
        first = next(iter(found.values()))
        if first.value is None:
            raise TrainingError(f"{first.name} has no value after epoch {epoch:g}: {first.why}")
        value = first.value if first.better == "higher" else -first.value
        bests = [h for h in history if h["best"]]
        best = not bests or value > bests[-1]["value"]
        history.append({"epoch": epoch, "value": value, "best": best, "metrics": plain(found)})
        if best:
            self._keep(model)
        write_json(self.folder / "epochs.json", history)
        last = max(i for i, h in enumerate(history) if h["best"])
        if len(history) - 1 - last >= self.patience:
            control.should_training_stop = True

    def restore(self, model: Any) -> None:
        """Put the best epoch's weights back, and its metrics in `metrics`."""
        from safetensors.torch import load_file

        self.metrics = [h for h in self._history() if h["best"]][-1]["metrics"]
        best = load_file(self.folder / "best.safetensors")
        named = dict(model.named_parameters())
        for name, value in best.items():
            named[name].data.copy_(value)

    def _history(self) -> list[dict[str, Any]]:
        try:
            found: list[dict[str, Any]] = json.loads((self.folder / "epochs.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        return found

    def _keep(self, model: Any) -> None:
        from safetensors.torch import save_file

        trained = {n: p.detach().cpu().contiguous().clone() for n, p in model.named_parameters() if p.requires_grad}
        self.folder.mkdir(parents=True, exist_ok=True)
        new = self.folder / "best.safetensors.new"
        save_file(trained, new)
        new.replace(self.folder / "best.safetensors")
