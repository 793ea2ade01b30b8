"""Sessions whose model is in another process; they look as those of this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from llamagpu.engine.counters import Counters
from llamagpu.engine.isolated import Supervisor
from llamagpu.engine.request import Request
from llamagpu.engine.request import Sequence as Running
from llamagpu.errors import Unique, UsageError
from llamagpu.gpu import Device, Tensor
from llamagpu.model import Sizes
from llamagpu.model.packs import Encoded, Floats
from llamagpu.model.weights import Progress


@dataclass(frozen=True)
class RemoteDevice:
    """What is known here of the device of an isolated model."""

    adapter: str

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise elsewhere(f"device.{name}")


@dataclass(frozen=True)
class RemoteModel:
    """What is known here of an isolated model."""

    sizes: Sizes

    @property
    def context(self) -> int:
        """The most tokens of a sequence."""
        return self.sizes.context


class RemoteEngine:
    """The engine of a decoder in another process."""

    def __init__(self, supervisor: Supervisor):
        self._supervisor = supervisor

    def submit(self, request: Request) -> Running:
        """Queue a request."""
        return self._supervisor.submit(request)

    def bind(self, tensors: Mapping[str, Tensor]) -> NoReturn:
        """Refuse: tensors are on devices of this process."""
        raise elsewhere("bind")

    run = unbind = bind


class RemotePacks:
    """The engine of packs in another process.

    Attributes:
        rows: tokens of the largest pack.
    """

    def __init__(self, supervisor: Supervisor, rows: int):
        self._supervisor, self.rows = supervisor, rows

    def submit(self, texts: Sequence[Encoded], modes: tuple[str, ...]) -> Future[Floats]:
        """Queue texts."""
        return self._supervisor.encode(list(texts), modes)


class RemoteSession(Unique):
    """A model in another process. ``arguments`` and ``progress`` are those of ``Supervisor``.

    Attributes:
        digests: hashes of the loaded adapters by name.
    """

    def __init__(self, arguments: Mapping[str, Any], progress: Progress | None = None):
        self._supervisor = Supervisor(arguments, progress)
        facts = self._supervisor.facts
        self.device, self.model = RemoteDevice(facts["adapter"]), RemoteModel(facts["sizes"])
        self.engine = RemoteEngine(self._supervisor)
        self.digests: dict[str, str] = facts.get("adapters", {})  # encoders have none
        self.closed = False

    @property
    def sizes(self) -> Any:
        """The bytes of the model, and its chosen sizes."""
        return self.model.sizes

    @property
    def counters(self) -> Counters:
        """What the engine there counted, as of its last event."""
        return self._supervisor.counters

    def add_adapter(self, name: str, path: str) -> NoReturn:
        """Refuse: the adapters of an isolated model are those that it was loaded with."""
        raise elsewhere("add_adapter")

    def remove_adapter(self, name: str) -> NoReturn:
        """Refuse: as ``add_adapter``."""
        raise elsewhere("remove_adapter")

    def save_cache(self, path: Path) -> NoReturn:
        """Refuse: the cache is in the other process."""
        raise elsewhere("save_cache")

    def load_cache(self, path: Path) -> NoReturn:
        """Refuse: the cache is in the other process."""
        raise elsewhere("load_cache")

    def packs(self) -> RemotePacks:
        """What embeds texts."""
        return RemotePacks(self._supervisor, self.model.sizes.rows)

    def close(self) -> None:
        """End the process. Closing twice is harmless."""
        if not self.closed:
            self.closed = True
            self._supervisor.close()

    def __del__(self) -> None:
        if not getattr(self, "closed", True):
            self.close()


def elsewhere(name: str) -> UsageError:
    """The error for what only a model in this process has."""
    return UsageError(
        f"An isolated model has no {name} here.", "Its device is in another process.", "Load it with isolate=False."
    )


def remote_arguments(path: Path, kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a session in another process.

    Args:
        kind: decoder or encoder.

    Raises:
        UsageError: the device is open in this process.
    """
    if isinstance(options["device"], Device):
        raise UsageError(
            "An isolated model opens a device of its own.",
            "An open one cannot be shared with another process.",
            "Give the adapter's number, kind or name.",
        )
    return {"path": str(path), "kind": kind, **options}
