"""The engine: requests, the page table, the sampling loop; tokens and sequences, no wgpu."""

from llamagpu.engine.cross_encoder import CrossEncoder
from llamagpu.engine.embedder import Embedder
from llamagpu.engine.llm import LLM
from llamagpu.engine.result import Result, Timings
from llamagpu.engine.stream import Stream

__all__ = ["LLM", "CrossEncoder", "Embedder", "Result", "Stream", "Timings"]
