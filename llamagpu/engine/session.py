"""Sessions: the life cycle of an open device, a model on it, and the engine that runs requests."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from llamagpu import gpu
from llamagpu.engine.counters import Counters
from llamagpu.engine.draft_model import ModelDrafter, prepare_draft
from llamagpu.engine.drafts import PROMPT, Drafter, PromptLookup
from llamagpu.engine.encoding import EncoderEngine
from llamagpu.engine.engine import Engine
from llamagpu.errors import DeviceLostError, Unique, UsageError, shown
from llamagpu.model import Model, Prepared, Sizes, load_model
from llamagpu.model.cache_file import cache_facts, load_pages, save_pages
from llamagpu.model.lora import Lora, read_lora
from llamagpu.model.lora_stack import unknown
from llamagpu.model.sizes import plan_sizes
from llamagpu.model.tuner import tune as measure
from llamagpu.model.weights import Progress

log = logging.getLogger("llamagpu")


class Loaded(Unique):
    """Something that was loaded on a device. Closing it frees its buffers, and the device if it opened that."""

    device: gpu.Device
    closed = True

    def _load(
        self,
        device: str | gpu.Device,
        load: Callable[[], None],
        recover: bool,
        most: int | str | None,
        need: gpu.Need,
    ) -> None:
        """Open the device (an open one is shared, and stays open), and load onto it; ``most`` and ``need`` are those of
        ``gpu.open``. If it is lost meanwhile, load once more."""
        self._owns_device = not isinstance(device, gpu.Device)
        self.device = gpu.open(device, memory_limit=most, need=need, recover=recover)
        recovery, before = self.device.recovery, self.device.recovery.losses

        def enter() -> None:
            if recovery.losses != before:  # it was lost after the load
                self.reload()
            recovery.add(self)

        try:
            try:
                self._track(load)
            except DeviceLostError:  # by any of its calls, also those that nobody waits for
                if not self.device.call(lambda: recovery.losses != before):  # it was not opened again
                    raise
                before = recovery.losses
                self._free()
                self._track(load)
            self.device.call(enter)
        except BaseException:
            self._free()
            if self._owns_device:
                self.device.close()
            raise

    def _track(self, make: Callable[[], None]) -> None:
        """Make something, and note its buffers."""
        with self.device.ledger.tracking() as self._buffers:
            make()

    def reload(self) -> None:
        """Make everything again on a device that was lost, and continue; on the device thread."""
        self._track(self._remake)

    def _remake(self) -> None:
        """Load again, and hand what runs to the new model; on the device thread."""
        raise NotImplementedError

    def fail(self, error: Exception) -> None:
        """End what runs with an error, for good; on the device thread."""
        raise NotImplementedError

    def _end(self) -> None:
        """Stop what runs; on the device thread."""
        raise NotImplementedError

    def __del__(self) -> None:
        if not self.closed:
            self.close()

    def close(self) -> None:
        """Free the memory. Running requests end with an error; closing twice is harmless."""
        if self.closed:
            return
        self.closed = True

        def close() -> None:  # one call, so that an interrupt during the wait cannot skip a part
            self.device.recovery.remove(self)
            self._end()
            self._free()

        try:
            self.device.call(close)
        except DeviceLostError:
            pass  # the device was closed before the model, or belongs to the parent process
        if self._owns_device:
            self.device.close()

    def _free(self) -> None:
        for buffer in self._buffers:
            self.device.free(buffer)
        self._buffers.clear()


class Session(Loaded):
    """A prepared model, loaded and ready for requests. Close it, or use it as a context manager.

    Args:
        device: as ``gpu.open`` takes it; an open device is shared, and stays open.
        tune: measure the kernel variants for this model first.
        at_once: the least capacity of the cache, in tokens of all sequences together.
        recover: whether a lost device is opened again, if the session opens it.
        max_memory: the most bytes to take on an adapter that is opened here.
        speculate: ``prompt`` guesses tokens from the text so far, another text names a draft model; None guesses none.
        adapters: paths of LoRA adapters by their names.

    Attributes:
        adapters: the loaded adapters by their names.
    """

    model: Model
    engine: Engine

    def __init__(
        self,
        prepared: Prepared,
        device: str | gpu.Device = "auto",
        *,
        context: int | None = None,
        kv_dtype: str = "auto",
        tune: bool = False,
        fused: bool = True,
        progress: Progress | None = None,
        at_once: int = 0,
        recover: bool = True,
        max_memory: int | str | None = None,
        speculate: str | None = None,
        adapters: Mapping[str, str] | None = None,
    ):
        def need(capacity: gpu.Capacity) -> object:
            return plan_sizes(prepared.layout, capacity, context, kv_dtype, fused=fused, at_once=at_once, loras=loras)

        def load() -> None:
            tuning = self._tuned(prepared) if tune else self.device.tuning
            self.model = load_model(
                prepared, self.device, tuning, context, kv_dtype, progress, fused, at_once, loras=loras, warm=True
            )
            self.model.loras.add(self.adapters)
            self.engine = Engine(self.device, self.model, self._drafter(speculate))

        self.adapters: dict[str, Lora] = {
            name: read_lora(path, prepared.layout) for name, path in (adapters or {}).items()
        }
        loras = self.adapters.values()
        self._draft: Prepared | None = None
        if speculate not in (None, PROMPT):
            self._draft = prepare_draft(str(speculate), prepared)
        self._prepared, self._fused, self._speculate = prepared, fused, speculate
        self._packs: EncoderEngine | None = None
        self._load(device, load, recover, max_memory, need)
        self.closed = False

    def _drafter(self, speculate: str | None) -> Drafter | None:
        if self._draft is None:
            return None if speculate is None else PromptLookup()
        most = min(self.model.context, self._draft.config.max_position_embeddings)
        model = load_model(self._draft, self.device, self.device.tuning, most, "auto")
        return ModelDrafter(self.device, model, self._prepared.config.vocab_size)

    def _remake(self) -> None:
        old = self.model
        self.model = load_model(
            self._prepared, self.device, old.forward.tuning, None, "auto", fused=self._fused, sizes=old.sizes
        )
        self.model.loras.add(self.adapters)
        self.engine.restart(self.model, self._drafter(self._speculate))
        if self._packs is not None:
            self._packs.restart(self.engine.packs())

    def fail(self, error: Exception) -> None:
        """End all generations with an error, for good; on the device thread."""
        self.engine.fail(error)
        if self._packs is not None:
            self._packs.fail(error)

    @property
    def sizes(self) -> Sizes:
        """The bytes of weights, cache and activations, and the chosen context, pool and cache dtype."""
        return self.model.sizes

    @property
    def counters(self) -> Counters:
        """What the engine counted, and how full the cache is."""
        return self.engine.scheduler.counters(self.model.cache)

    @property
    def digests(self) -> dict[str, str]:
        """Hashes of the loaded adapters by name."""
        return {name: lora.file.digest.hex() for name, lora in list(self.adapters.items())}

    def add_adapter(self, name: str, path: str) -> None:
        """Load an adapter; see ``LLM.add_adapter``."""
        lora = read_lora(path, self._prepared.layout)

        def add() -> None:
            if name in self.adapters:
                what = f"There is an adapter {shown(name)} already."
                raise UsageError(what, "Requests may use it.", "Choose another name, or remove it first.")
            self._change_adapters(lambda: self.model.loras.add({name: lora}))
            self.adapters[name] = lora

        self.device.call(add)

    def remove_adapter(self, name: str) -> None:
        """Free an adapter; see ``LLM.remove_adapter``."""

        def remove() -> None:
            if name not in self.adapters:
                raise unknown(name, self.adapters)
            scheduler = self.engine.scheduler
            using = sum(s.request.adapter == name for s in (*scheduler.active, *scheduler.waiting))
            if using:
                why = f"{using} generations use it."
                raise UsageError(f"The adapter {shown(name)} cannot be removed now.", why, "Wait, or stop them.")
            self._change_adapters(lambda: self.model.loras.remove(name))
            del self.adapters[name]

        self.device.call(remove)

    def _change_adapters(self, change: Callable[[], None]) -> None:
        """Change the stack between steps; on the device thread."""
        self.device.synchronize()  # steps in flight use the buffers that are replaced
        change()
        self.model.forward.drop_lora_plans()

    def save_cache(self, path: Path) -> int:
        """Write what the cache knows; see ``cache_file``."""
        facts = cache_facts(self.model, self._prepared, self._fused)
        return self.device.call(lambda: save_pages(self.model, path, facts))

    def load_cache(self, path: Path) -> int:
        """Make known what a file holds; see ``cache_file``."""
        facts = cache_facts(self.model, self._prepared, self._fused)
        return self.device.call(lambda: load_pages(self.model, path, facts))

    def packs(self) -> EncoderEngine:
        """The engine that embeds texts; made at the first call."""

        def make() -> EncoderEngine:
            if self._packs is None:
                self._packs = EncoderEngine(self.device, self.engine.packs())
            return self._packs

        return self._packs or self.device.call(make)

    def _end(self) -> None:
        self.engine.close()
        if self._packs is not None:
            self._packs.close()

    def _tuned(self, prepared: Prepared) -> gpu.Tuning:
        tuning = measure(self.device, prepared.layout)
        try:
            gpu.store_tuning(self.device.adapter, tuning)
        except OSError as e:
            log.warning("the tuning cannot be kept: %s", e)
        return tuning
