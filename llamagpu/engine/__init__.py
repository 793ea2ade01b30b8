"""The engine: requests, the page table, the sampling loop; tokens and sequences, no wgpu."""

from llamagpu.engine.async_llm import AsyncLLM
from llamagpu.engine.async_stream import AsyncStream, Taker
from llamagpu.engine.cross_encoder import CrossEncoder
from llamagpu.engine.embedder import Embedder
from llamagpu.engine.llm import LLM
from llamagpu.engine.result import Result, Timings
from llamagpu.engine.stream import Stream

__all__ = ["LLM", "AsyncLLM", "AsyncStream", "CrossEncoder", "Embedder", "Result", "Stream", "Taker", "Timings"]
