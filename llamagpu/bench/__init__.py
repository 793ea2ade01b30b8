"""Measuring: the adapter's yardsticks, a model's prompt and generation speed, and the times of its parts."""

from llamagpu.bench.measure import Run, Subject, open_subject
from llamagpu.bench.yardsticks import Yardsticks, yardsticks

__all__ = ["Run", "Subject", "Yardsticks", "open_subject", "yardsticks"]
