"""Models on the Hugging Face hub: its cache on this machine, downloads, headers over the network, and lists."""

from llamagpu.model.hub.cache import repo_of
from llamagpu.model.hub.download import Fit, hub_file, hub_model, is_cached
from llamagpu.model.hub.errors import adapter_error
from llamagpu.model.hub.headers import hub_headers

__all__ = ["Fit", "adapter_error", "hub_file", "hub_headers", "hub_model", "is_cached", "repo_of"]
