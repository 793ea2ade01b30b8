"""A loaded model: found, checked, measured against the memory that is there, and put on the GPU."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from llamagpu.errors import ModelNotFoundError, OutOfMemoryError, UnsupportedModelError, UsageError
from llamagpu.gpu import Affine, Device
from llamagpu.kernels import PAGE, cache_columns
from llamagpu.model.cache import PagedCache, kv_bytes, pages_for
from llamagpu.model.checkpoint import open_checkpoint
from llamagpu.model.config import Config, load_config
from llamagpu.model.elsewhere import asking_hub, refuse_adapter, refuse_gguf
from llamagpu.model.forward import HEAD_ROWS, ROW_BUCKETS, Forward, arena_bytes, bucket, make_arena
from llamagpu.model.layout import DTYPES, Layout
from llamagpu.model.rope_table import rope_table
from llamagpu.model.shapes import random_weights, shape_config, shape_layout
from llamagpu.model.weights import Progress, Weights, load_weights

log = logging.getLogger("llamagpu")
DEFAULT_MODEL = "stories"
DEFAULT_CONTEXT = 4096
_POOLS = (8, 4, 2)  # whole contexts that the cache holds at once, where they take little beside the weights
_POOL_BYTES = 32_000_000
KV_DTYPES = {"float32": "f32", "float16": "f16"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja"]


@dataclass(frozen=True)
class Sizes:
    """What a load will take, in bytes, and the choices behind it."""

    context: int
    pool: int  # tokens that the cache holds, of all sequences together
    kv_dtype: str
    rows: int
    weights: int
    kv: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.activations


@dataclass
class Model:
    """Config, weights, passes and cache of a model on a device. ``context`` is the most tokens of a sequence."""

    config: Config
    weights: Weights
    forward: Forward
    cache: PagedCache
    context: int
    rows: int
    sizes: Sizes


def embedded_models() -> Path:
    """Where the models that come with the package are."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "weights"
    return inside if inside.is_dir() else package.parent / "weights"


def find_model(model: str | Path | None, revision: str | None = None) -> Path:
    """The directory of a model: the embedded one (None), a directory, a safetensors file in one, or a hub id.

    A hub id is downloaded (config, tokenizer, safetensors) or taken from the hub's cache.

    Raises:
        ModelNotFoundError: nothing is there, or the hub cannot be reached and its cache lacks the model.
        UnsupportedModelError: it is a GGUF file or a LoRA adapter.
    """
    if model is None or (str(model) == DEFAULT_MODEL and not Path(DEFAULT_MODEL).is_dir()):
        return embedded_models() / DEFAULT_MODEL
    if not isinstance(model, (str, Path)) or not str(model).strip():
        raise UsageError(f"{model!r} is no model.", "A model is a directory, a safetensors file or a hub id.")
    path = Path(model).expanduser()
    if revision is not None and path.exists():
        raise UsageError(f"{path} has no revision {revision!r}.", "It is a path here; revisions are those of a hub id.")
    refuse_gguf(path)
    if path.is_dir():
        return refuse_adapter(path)
    if path.is_file() and path.suffix == ".safetensors":
        return refuse_adapter(path.parent)
    if path.exists():
        raise ModelNotFoundError(f"{path} is no model.", "A model is a directory, a safetensors file or a hub id.")
    if is_hub_id(model):
        return refuse_adapter(_download(str(model), revision))
    raise ModelNotFoundError(
        f"There is no model directory {path}.",
        "A model is a directory with config.json, or a hub id such as owner/name.",
        "Check the path.",
    )


def is_hub_id(model: str | Path) -> bool:
    """Whether a name is no path here but could be one on the hub: owner/name."""
    return isinstance(model, str) and not Path(model).expanduser().exists() and bool(_HUB_ID.fullmatch(model))


def _download(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        with asking_hub(model):
            return Path(snapshot_download(model, revision=revision, allow_patterns=_HUB_FILES))
    except (RepositoryNotFoundError, HFValidationError) as e:
        why = str(e).strip().splitlines()[0]
        raise ModelNotFoundError(
            f"There is no model {model} on the hub, and no such directory here.", why, "Check the name."
        ) from None
    except Exception as e:  # the hub's errors have many roots
        why = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise ModelNotFoundError(
            f"The model {model} could not be fetched from the hub, and its cache does not hold it.",
            why,
            "Check the network (and HF_HUB_OFFLINE), or give the path of a model directory.",
        ) from None


def plan_sizes(
    layout: Layout,
    device: Device,
    context: int | None,
    kv_dtype: str,
    most_context: int = DEFAULT_CONTEXT,
    fused: bool = True,
    at_once: int = 0,
) -> Sizes:
    """Choose context and cache dtype, and add up what they take; ``at_once`` is the least tokens that the cache is to
    hold, of all sequences together.

    Raises:
        UsageError: a context that the model does not have.
        OutOfMemoryError: it does not fit; the numbers, and what would fit, are in the message.
    """
    c = layout.config
    narrow = all(m.format == "f16" or isinstance(m.format, Affine) for m in layout.matrices.values())
    kv = KV_DTYPES.get(kv_dtype) or ("f16" if narrow else "f32")
    most = c.max_position_embeddings
    if context is not None and not 1 <= context <= most:
        raise UsageError(f"A context of {context} tokens is not possible.", f"The model has from 1 to {most}.")
    wanted = min(most, most_context) if context is None else context
    free = device.ledger.free_bytes()

    def sizes(tokens: int, pool: int | None = None) -> Sizes:
        pool = pool or tokens
        rows = bucket(min(max(tokens, HEAD_ROWS), ROW_BUCKETS[-1]))
        activations = arena_bytes(c, rows, tokens, fused) + tokens * c.head_dim * 4
        return Sizes(tokens, pool, kv, rows, layout.nbytes, kv_bytes(c, pool, kv), activations)

    def fits(tokens: int, pool: int | None = None) -> bool:
        pages = pages_for(pool or tokens) + 1
        layer = pages * cache_columns(c.num_key_value_heads, c.head_dim) * (2 if kv == "f16" else 4)
        bound = min(device.max_binding, device.max_buffer)
        return layer <= bound and (free is None or sizes(tokens, pool).total <= free)

    if at_once > wanted:
        if not fits(wanted, at_once):
            raise _does_not_fit(layout, sizes(wanted, at_once), 0, free, device)
        return sizes(wanted, at_once)
    if fits(wanted):
        allowed = max(_POOL_BYTES, layout.nbytes // 2)
        pools = (n * wanted for n in _POOLS if kv_bytes(c, n * wanted, kv) <= allowed and fits(wanted, n * wanted))
        return sizes(wanted, next(pools, wanted))
    low, high = 0, wanted // PAGE
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * PAGE) else (low, middle - 1)
    if low and context is None:
        log.warning("the context is %d tokens: %d do not fit the memory or the binding limit", low * PAGE, wanted)
        return sizes(low * PAGE)
    raise _does_not_fit(layout, sizes(wanted), low * PAGE, free, device)


def _does_not_fit(layout: Layout, need: Sizes, would: int, free: int | None, device: Device) -> OutOfMemoryError:
    have = "unknown" if free is None else f"{free / 1e6:,.1f} MB"
    fit = [f"a context of {would} tokens fits"] if would else []
    for dtype in ("float16", "int8", "int4") if not would else ():
        smaller = layout.with_dtype(dtype)
        if smaller < need.weights and smaller + need.kv + need.activations <= (free or 0):
            fit.append(f"with --dtype {dtype} the weights take {smaller / 1e6:,.1f} MB")
    return OutOfMemoryError(
        f"The model does not fit: it needs {need.total / 1e6:,.1f} MB, and {have} are free.",
        f"Weights {need.weights / 1e6:,.1f} MB, cache for {need.context} tokens {need.kv / 1e6:,.1f} MB, activations "
        f"{need.activations / 1e6:,.1f} MB; a binding holds {device.max_binding / 1e6:,.1f} MB.",
        f"What would fit: {', '.join(fit)}." if fit else "Use a smaller model, or an adapter with more memory.",
    )


def check_dtypes(dtype: str, kv_dtype: str) -> None:
    """Raises UsageError for a dtype that is not known."""
    if dtype not in DTYPES:
        raise UsageError(f"Unknown dtype {dtype!r}.", f"Known: {', '.join(DTYPES)}.")
    if kv_dtype != "auto" and kv_dtype not in KV_DTYPES:
        raise UsageError(f"Unknown kv_dtype {kv_dtype!r}.", f"Known: auto, {', '.join(KV_DTYPES)}.")


@dataclass(frozen=True)
class Prepared:
    """A model's files read and checked, nothing on a device yet; or a shape, whose weights will be random."""

    directory: Path
    config: Config
    layout: Layout
    random: bool = False


def prepare(directory: Path, dtype: str = "auto") -> Prepared:
    """Read config.json and the weights' headers, and check them against one another."""
    config = load_config(directory)
    try:
        layout = Layout(config, open_checkpoint(directory), dtype)
    except ModelNotFoundError:
        raise
    except OSError as e:
        raise UnsupportedModelError(f"The files of {directory} cannot be read.", str(e)) from None
    return Prepared(directory, config, layout)


def prepare_shape(name: str, dtype: str = "auto") -> Prepared:
    """A named shape (``shapes.SHAPES``), to be loaded with random weights."""
    config = shape_config(name)
    return Prepared(Path(name), config, shape_layout(config, dtype), random=True)


def prepare_model(model: str | Path | None, shape: str | None, dtype: str = "auto") -> Prepared:
    """A checkpoint (see ``find_model``), or a named shape.

    Raises:
        UsageError: both, a dtype or a shape that is not known.
    """
    if model is not None and shape is not None:
        raise UsageError("--model and --shape exclude one another.", "A shape has random weights.")
    check_dtypes(dtype, "auto")
    return prepare_shape(shape, dtype) if shape is not None else prepare(find_model(model), dtype)


def load_model(
    prepared: Prepared,
    device: Device,
    context: int | None,
    kv_dtype: str,
    progress: Progress | None = None,
    fused: bool = True,
    at_once: int = 0,
) -> Model:
    """Put a prepared model on a device. ``fused`` chooses the form of the forward pass (``layers``), ``at_once`` see
    ``plan_sizes``."""
    config = prepared.config
    sizes = plan_sizes(prepared.layout, device, context, kv_dtype, fused=fused, at_once=at_once)
    if prepared.layout.unquantized:
        log.warning("not quantised, as groups do not divide their rows: %s", ", ".join(prepared.layout.unquantized))
    log.info("context %d tokens, cache %s, %.1f MB in all", sizes.context, sizes.kv_dtype, sizes.total / 1e6)
    if prepared.random:
        weights = random_weights(prepared.layout, device)
    else:
        weights = load_weights(prepared.layout, device, progress)
    cache = PagedCache(device, config, sizes.context, sizes.pool, sizes.kv_dtype)
    turns = device.tensor(rope_table(config.rope, config.head_dim, sizes.context), "f32", purpose="activations")
    arena = make_arena(device, config, sizes.rows, sizes.context, fused)
    forward = Forward(config, weights, cache, turns, arena, fused)
    return Model(config, weights, forward, cache, sizes.context, sizes.rows, sizes)
