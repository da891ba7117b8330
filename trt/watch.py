"""Patients looked at while training goes on, who are not trained on: curves, and an early end.

They are others than those held back, so that no weights are chosen by these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trt.dataset import Case
from trt.trainer import Run, agreed
from trt.validation import score


@dataclass(frozen=True)
class Watch:
    """Scores `cases`, normalised, after every `every` epochs; `patience` looks without a better one end the run."""

    cases: Sequence[Case]
    labels: Sequence[str]
    every: int
    patience: int  # 0: never

    def due(self, run: Run) -> bool:
        """Whether to look now, after an epoch; pre-training is not looked at."""
        return bool(self.cases) and run.epoch > run.pretraining and run.epoch % self.every == 0

    def look(self, run: Run) -> dict[str, float]:
        """Dice by label; their mean joins `run.scores`, which the checkpoint keeps."""
        first = run.rank == 0  # each process has statistics of its own batches, and all must end together
        scores = agreed(score(run.average, self.cases, bf16=run.config.bf16) if first else None)
        values = dict(zip(self.labels, scores, strict=True))
        known = [value for value in values.values() if not math.isnan(value)]
        run.scores.append(sum(known) / len(known) if known else 0.0)
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def best(self, run: Run) -> bool:
        """Whether the last look was the best so far."""
        return bool(run.scores) and run.scores.index(max(run.scores)) == len(run.scores) - 1

    def exhausted(self, scores: Sequence[float]) -> bool:
        """Whether the best score lies `patience` looks back."""
        return bool(self.patience) and bool(scores) and len(scores) - 1 - scores.index(max(scores)) >= self.patience
