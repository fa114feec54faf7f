"""The learning rate of a step: a linear rise, then a linear fall, or no fall.

Source: Devlin et al. 2018, appendix A.2. No step is lost: the first of a rise is above 0, and so is the last of a fall.
"""

from __future__ import annotations

SCHEDULES = ("linear", "constant")


def learning_rate(step: int, *, peak: float, warmup_steps: int, total_steps: int, schedule: str = "linear") -> float:
    """The learning rate of `step`, from 1 to `total_steps`.

    It rises in equal parts to `peak` at step `warmup_steps`, or begins there; `linear` falls in equal parts from there
    to what would be 0 at the step after the last.
    """
    if step <= warmup_steps:
        return peak * step / warmup_steps
    if schedule == "constant":
        return peak
    return peak * (total_steps + 1 - step) / (total_steps + 1 - max(warmup_steps, 1))
