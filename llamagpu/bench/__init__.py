"""Measuring: yardsticks of the adapter, prompts and generation of a model, and what their parts take."""

from llamagpu.bench.measure import Run, Subject, open_subject
from llamagpu.bench.yardsticks import Yardsticks, yardsticks

__all__ = ["Run", "Subject", "Yardsticks", "open_subject", "yardsticks"]
