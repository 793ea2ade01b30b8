"""A model's plans, shaders and weights, written as a static site that a browser runs by WebGPU."""

from llamagpu.browser.site import Site, export

__all__ = ["Site", "export"]
