"""Progress lines of a training stage."""

import time

from torch import Tensor


class Progress:
    """Prints the smoothed loss every 100 steps, with the time taken."""

    def __init__(self, stage: str, steps: int) -> None:
        self._stage, self._steps, self._step, self._loss = stage, steps, 0, 0.0
        self._wall, self._cpu = time.time(), time.process_time()

    def report(self, loss: Tensor) -> None:
        self._step += 1
        decay = min(0.97, 1 - 1 / self._step)
        self._loss = decay * self._loss + (1 - decay) * loss.item()
        if self._step % 100 == 0 or self._step == self._steps:
            wall, cpu = time.time() - self._wall, time.process_time() - self._cpu
            print(
                f"{self._stage} {self._step}/{self._steps}  loss {self._loss:.4f}  {wall:.0f} s, {cpu:.0f} s CPU",
                flush=True,
            )
