"""Offline jobs: rows of a file through a model into another file, resumable after a kill."""

from llamagpu.jobs.embedding import Embedding, Ranking
from llamagpu.jobs.generation import Generation
from llamagpu.jobs.output import check_output
from llamagpu.jobs.readers import Input, Texts, open_input, standard_lines
from llamagpu.jobs.rows import Batches, Job, Outcome, Row
from llamagpu.jobs.runner import Summary, results, run

__all__ = [
    "Batches",
    "Embedding",
    "Generation",
    "Input",
    "Job",
    "Outcome",
    "Ranking",
    "Row",
    "Summary",
    "Texts",
    "check_output",
    "open_input",
    "results",
    "run",
    "standard_lines",
]
