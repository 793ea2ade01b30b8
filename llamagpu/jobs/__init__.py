"""Offline jobs: rows of a file through a model into another file, resumable after a kill."""

from llamagpu.jobs.generation import Generation
from llamagpu.jobs.output import check_output
from llamagpu.jobs.readers import Input, open_input
from llamagpu.jobs.rows import Batches, Job, Outcome, Row
from llamagpu.jobs.runner import Summary, run

__all__ = ["Batches", "Generation", "Input", "Job", "Outcome", "Row", "Summary", "check_output", "open_input", "run"]
