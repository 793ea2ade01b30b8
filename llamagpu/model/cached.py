"""The models in the hub's cache, from their headers: what ``llamagpu models`` lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llamagpu.errors import LlamaGPUError, OutOfMemoryError
from llamagpu.gpu import Device, device_capacity
from llamagpu.model.hub.cache import CONFIG, Repo, Snapshot, cache_folder, gguf_parts
from llamagpu.model.hub.download import check_config
from llamagpu.model.hub.logs import quiet
from llamagpu.model.layout import Layout
from llamagpu.model.model import prepare
from llamagpu.model.sizes import DEFAULT_CONTEXT, plan_sizes
from llamagpu.model.sources.files import load_config

_TRIED = ("auto", "int8", "int4")  # dtypes of the weights, the largest first


def cached_models(device: Device | None) -> list[dict[str, Any]]:
    """Every model of the hub's cache as JSON values, a row for each revision and each GGUF file, sorted by name.

    ``missing`` has the files without which it cannot be opened, ``reason`` says why it is not supported. ``fits`` has
    the dtypes (as stored, int8, int4) with which it fits the device's free memory, with a context of up to 4096 tokens;
    it is None without a device.
    """
    from huggingface_hub import scan_cache_dir

    if not cache_folder().is_dir():
        return []
    rows: list[dict[str, Any]] = []
    for repo in scan_cache_dir(cache_folder()).repos:
        if repo.repo_type != "model":
            continue
        for found in repo.revisions:
            snapshot = Repo(repo.repo_id).snapshot(found.commit_hash)
            place = {"revision": found.commit_hash, "refs": sorted(found.refs)}
            rows += [row | place for row in _rows(snapshot, device)]
    return sorted(rows, key=lambda row: (row["model"].lower(), not row["refs"], row["revision"]))


def _rows(snapshot: Snapshot, device: Device | None) -> list[dict[str, Any]]:
    """The GGUF files of a snapshot, and its safetensors model, if it may have one."""
    name, rows = snapshot.repo.id, []
    for path in sorted(snapshot.path.rglob("*.gguf")):
        file = path.relative_to(snapshot.path).as_posix()
        parts = gguf_parts(file)
        if file == parts[0] or not (snapshot.path / parts[0]).exists():
            missing = [part for part in parts if not (snapshot.path / part).exists()]
            files = [snapshot.path / part for part in parts]
            rows.append(_row(f"{name}:{parts[0]}", path, files, missing, device))
    if not rows or (snapshot.path / CONFIG).exists():
        files = [path for path in snapshot.path.rglob("*") if path.suffix != ".gguf"]
        row = _row(name, snapshot.path, files, snapshot.missing(), device)
        rows.append(row | {"partial_bytes": snapshot.repo.partial_bytes()})
    return rows


def _row(name: str, path: Path, files: list[Path], missing: list[str], device: Device | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "model": name,
        "path": str(path),
        "bytes": sum(file.stat().st_size for file in files if file.is_file()),
        "partial_bytes": 0,
        "architecture": None,
        "parameters": None,
        "stored": None,
        "missing": missing,
        "reason": None,
        "fits": None,
    }
    try:
        with quiet():
            if (path / CONFIG).exists():
                row["architecture"] = load_config(path).get("model_type")
            if not missing:
                row |= _facts(path, device)
            elif row["architecture"] is not None:
                check_config(path)
    except LlamaGPUError as e:
        row["reason"] = e.what
    return row


def _facts(path: Path, device: Device | None) -> dict[str, Any]:
    """What the headers of a model say."""
    prepared = prepare(path)
    layout = prepared.layout
    return {
        "architecture": prepared.config.model_type,
        "parameters": layout.parameters,
        "stored": sorted({matrix.format_name for matrix in layout.matrices.values()}),
        "fits": None if device is None else [dtype for dtype in _TRIED if _fits(layout.with_dtype(dtype), device)],
    }


def _fits(layout: Layout, device: Device) -> bool:
    context = min(layout.config.max_position_embeddings, DEFAULT_CONTEXT)
    try:
        plan_sizes(layout, device_capacity(device), context, "auto")
    except OutOfMemoryError:
        return False
    return True
