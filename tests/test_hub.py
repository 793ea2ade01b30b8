"""Models from the hub: what is requested, what the cache keeps, and the errors; against a stand-in on this machine."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import random_encoders
import random_models
from hub_server import Files, Hub, model_files, wait_until
from huggingface_hub import constants, file_download
from safetensors.numpy import load_file, save_file

from llamagpu import LLM, CrossEncoder, Embedder, gpu
from llamagpu.cli.main import run
from llamagpu.errors import LlamaGPUError, ModelNotFoundError, OutOfMemoryError, UnsupportedModelError, UsageError
from llamagpu.model import find_model
from llamagpu.model.architectures import ARCHITECTURES
from llamagpu.model.hub.known import KNOWN
from llamagpu.model.inspect import inspect_model
from llamagpu.model.quantize import quantize_checkpoint

REPO = "owner/tiny"
NEEDED = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
SMALL = 4096  # bytes in a chunk of a download; a shorter rest is lost with a connection


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that this process uses, with an empty cache."""
    server = Hub()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name, value in {
        "ENDPOINT": server.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "DOWNLOAD_CHUNK_SIZE": SMALL,
        "HF_HUB_ETAG_TIMEOUT": 1,
        "HF_HUB_DOWNLOAD_TIMEOUT": 1,
    }.items():
        monkeypatch.setattr(constants, name, value)
        if hasattr(file_download, name):  # copies in older versions of the library
            monkeypatch.setattr(file_download, name, value)
    yield server
    close = getattr(huggingface_hub, "close_session", None) or huggingface_hub.utils.reset_sessions
    close()
    server.close()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A small random model, with files that are not needed."""
    c = random_models.config()
    directory = random_models.write_model(tmp_path_factory.mktemp("tiny"), c, random_models.tensors(c, 3))
    (directory / "generation_config.json").write_text("{}")
    (directory / "tokenizer_config.json").write_text('{"model_max_length": 512}')
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}")
    files = model_files(directory)
    unneeded = ("pytorch_model.bin", "consolidated.safetensors", "README.md", ".gitattributes", "onnx/model.onnx")
    return files | dict.fromkeys(unneeded, b"not needed")


def sharded(tiny: Files, folder: Path) -> Files:
    """The same model in two shards with an index, beside a single file that is not needed then."""
    folder.mkdir()
    (folder / "single").write_bytes(tiny["model.safetensors"])
    tensors = load_file(folder / "single")
    names = sorted(tensors)
    out, weight_map = {k: v for k, v in tiny.items() if not k.startswith("model.")}, {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"model-{i:05}-of-00002.safetensors"
        save_file({n: tensors[n] for n in part}, folder / shard)
        out[shard] = (folder / shard).read_bytes()
        weight_map |= dict.fromkeys(part, shard)
    out["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    return out


def partial(repo: str = REPO) -> Path:
    """The beginning of the only file whose download was interrupted."""
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    (path,) = (folder / "blobs").glob("*.incomplete")
    return path


def environment(hub: Hub, folder: Path) -> dict[str, str]:
    """The environment of a command that uses this hub, by its public variables."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    own |= {"HF_HUB_DISABLE_TELEMETRY": "1"}
    return own | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder), "NO_PROXY": "127.0.0.1,localhost"}


# --- what is requested ---------------------------------------------------------------------


def test_the_needed_files_are_downloaded_once(hub: Hub, tiny: Files, device: gpu.Device, tmp_path: Path) -> None:
    hub.add(REPO, tiny)
    with LLM(REPO, device=device) as llm:
        text = llm.generate("Once", max_tokens=4).text
        assert llm.name == REPO
    assert sorted(hub.fetched()) == sorted([*NEEDED, "model.safetensors"])
    with LLM(REPO, device=device) as llm:
        assert llm.generate("Once", max_tokens=4).text == text
    assert hub.take_log() == []
    hub.close()  # a cached model needs no hub
    assert find_model(REPO, "main").name == hub.repos[REPO]["main"]
    for name in (*NEEDED, "model.safetensors"):
        assert (find_model(REPO) / name).read_bytes() == tiny[name]


def test_an_encoder_comes_with_its_pipeline(hub: Hub, device: gpu.Device, tmp_path: Path) -> None:
    raw = random_encoders.CONFIGS["bert"]
    files = model_files(random_encoders.write_model(tmp_path / "bert", raw, random_encoders.tensors(raw, 1)))
    kinds = ("Transformer", "Pooling")
    modules = [
        {"path": f"{i}_{k}" if i else "", "type": f"sentence_transformers.models.{k}"} for i, k in enumerate(kinds)
    ]
    files |= {"modules.json": json.dumps(modules).encode(), "1_Pooling/config.json": b'{"pooling_mode": "cls"}'}
    hub.add(REPO, files | {"onnx/model.onnx": b"not needed"})
    with Embedder(REPO, device=device) as embedder:
        assert embedder.pipeline.pooling == ("cls",)
        assert embedder.encode("a1 a2").shape == (48,)
    assert sorted(hub.fetched()) == sorted(files)
    Embedder(REPO, device=device).close()
    assert hub.take_log() == []


def test_the_hubs_own_library_finds_the_downloaded_files(hub: Hub, tiny: Files) -> None:
    commit = hub.add(REPO, tiny)
    path = find_model(REPO)
    (repo,) = huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE).repos
    (revision,) = repo.revisions
    assert (repo.repo_id, revision.commit_hash, revision.refs) == (REPO, commit, {"main"})
    assert revision.snapshot_path == path
    hub.take_log()
    cache = constants.HF_HUB_CACHE
    found = huggingface_hub.hf_hub_download(REPO, "model.safetensors", cache_dir=cache, local_files_only=True)
    assert Path(found) == path / "model.safetensors"
    missing = huggingface_hub.try_to_load_from_cache(REPO, "tokenizer.model", cache)
    assert missing is file_download._CACHED_NO_EXIST


def test_a_file_that_another_commit_has_is_not_downloaded_again(hub: Hub, tiny: Files) -> None:
    hub.add(REPO, tiny)
    old = find_model(REPO)
    hub.add(REPO, tiny | {"generation_config.json": b'{"temperature": 0.5}'})
    assert find_model(REPO) == old
    hub.take_log()
    new = find_model(REPO, refresh=True)
    assert new != old
    assert hub.fetched() == ["generation_config.json"]
    assert find_model(REPO) == new
    assert hub.take_log() == []


def test_a_cache_of_another_program_is_completed(hub: Hub, tiny: Files, caplog: pytest.LogCaptureFixture) -> None:
    """It may lack files that only this program reads, and does not say which ones the repo lacks."""
    hub.add(REPO, tiny)
    cache = constants.HF_HUB_CACHE
    huggingface_hub.snapshot_download(REPO, cache_dir=cache, allow_patterns=["config.json", "model.safetensors"])
    hub.take_log()
    path = find_model(REPO)
    assert sorted(hub.fetched()) == sorted(set(NEEDED) - {"config.json"})
    assert find_model(REPO) == path
    assert hub.take_log() == []


def test_an_incomplete_cache_is_used_if_the_hub_is_gone(
    hub: Hub, tiny: Files, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, tiny)
    cache = constants.HF_HUB_CACHE
    huggingface_hub.snapshot_download(REPO, cache_dir=cache, allow_patterns=["*.json", "model.safetensors"])
    hub.faults.status = 503
    assert (find_model(REPO) / "model.safetensors").exists()
    assert "the cached files are used" in caplog.text
    assert "503" in caplog.text
    with pytest.raises(ModelNotFoundError, match="503"):
        find_model(REPO, refresh=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert (find_model(REPO) / "model.safetensors").exists()
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE"):
        find_model(REPO, refresh=True)


def test_shards_are_those_of_the_index(hub: Hub, tiny: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, sharded(tiny, tmp_path / "shards") | {"model.safetensors": b"not needed"})
    path = find_model(REPO)
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert sorted(hub.fetched()) == sorted([*NEEDED, "model.safetensors.index.json", *shards])
    find_model(REPO)
    assert hub.take_log() == []
    (path / shards[1]).resolve().unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match=f"its cache lacks {shards[1]}"):
        find_model(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    find_model(REPO)
    assert hub.fetched() == [shards[1]]


def test_a_model_in_mlx_format(hub: Hub, tiny: Files, device: gpu.Device, tmp_path: Path) -> None:
    from llamagpu.model import prepare

    for name in set(tiny) & {*NEEDED, "model.safetensors"}:
        (tmp_path / name).write_bytes(tiny[name])
    quantize_checkpoint(prepare(tmp_path), tmp_path / "mlx", 4, 32)
    hub.add(REPO, model_files(tmp_path / "mlx"))
    with LLM(REPO, device=device) as llm, LLM(tmp_path / "mlx", device=device) as local:
        assert np.array_equal(llm.logits([1, 2, 3]), local.logits([1, 2, 3]))


def test_further_templates_and_a_sentencepiece_tokenizer(hub: Hub, tiny: Files) -> None:
    more = {"additional_chat_templates/tools.jinja": b"tools", "tokenizer.model": b"pieces", "other/chat.jinja": b""}
    hub.add(REPO, tiny | more)
    path = find_model(REPO)
    assert (path / "additional_chat_templates" / "tools.jinja").read_bytes() == b"tools"
    assert (path / "tokenizer.model").exists()
    assert not (path / "other").exists()


# --- revisions and tokens ------------------------------------------------------------------


def test_revisions(hub: Hub, tiny: Files) -> None:
    main = hub.add(REPO, tiny)
    tag = hub.add(REPO, tiny | {"chat_template.jinja": b"tagged"}, "v1.0")
    pull = hub.add(REPO, tiny | {"chat_template.jinja": b"pull"}, "refs/pr/1")
    for revision, commit in ((None, main), ("v1.0", tag), ("refs/pr/1", pull), (tag, tag)):
        assert find_model(REPO, revision).name == commit
    hub.take_log()
    for revision, commit in ((None, main), ("main", main), ("v1.0", tag), ("refs/pr/1", pull), (main, main)):
        assert find_model(REPO, revision).name == commit
    assert hub.take_log() == []
    with pytest.raises(ModelNotFoundError, match="has no revision v2"):
        find_model(REPO, "v2")
    for revision in ("", "../main", "/etc"):
        with pytest.raises(UsageError, match="is not a revision"):
            find_model(REPO, revision)


def test_a_commit_that_is_not_cached_fails_at_once_offline(
    hub: Hub, tiny: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, tiny)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    start = time.monotonic()
    for revision in (None, "a" * 40):
        with pytest.raises(ModelNotFoundError, match="HF_HUB_OFFLINE is set, and it is not in the cache"):
            find_model(REPO, revision)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.close()  # and so does a hub that refuses the connection
    with pytest.raises(ModelNotFoundError, match="could not be fetched"):
        find_model(REPO, "a" * 40)
    assert time.monotonic() - start < 2


def test_the_token_is_sent_to_the_hub_alone(hub: Hub, tiny: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, tiny)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    find_model(REPO)
    log = hub.take_log()
    assert {r.token for r in log if not r.path.startswith("/storage/")} == {"Bearer hf_secret"}
    assert {r.token for r in log if r.path.startswith("/storage/")} == {None}


@pytest.mark.parametrize(("status", "why"), [(401, "no valid token"), (403, "has not been admitted")])
def test_a_gated_model(hub: Hub, tiny: Files, status: int, why: str) -> None:
    hub.add(REPO, tiny)
    hub.faults.gated = status
    for _ in range(2):
        with pytest.raises(ModelNotFoundError, match=why) as error:
            find_model(REPO)
    assert error.value.exit_code == 3
    assert "is gated" in error.value.what
    assert "HF_TOKEN" in error.value.hint


# --- interruptions and wrong answers -------------------------------------------------------


def test_a_broken_connection_is_resumed(hub: Hub, tiny: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, tiny)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    hub.faults.cut["model.safetensors"] = [3 * SMALL, 2 * SMALL]
    path = find_model(REPO)
    assert (path / "model.safetensors").read_bytes() == tiny["model.safetensors"]
    storage = [r for r in hub.take_log() if r.path.startswith("/storage/")]
    assert [r.range for r in storage] == [None, f"bytes={3 * SMALL}-", f"bytes={5 * SMALL}-"]
    assert sum(r.sent for r in storage) == len(tiny["model.safetensors"])


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_is_resumed_later(hub: Hub, tiny: Files, ranges: bool) -> None:
    """With the part that is there; or from its beginning, if the server ignores ranges."""
    hub.add(REPO, tiny)
    begun = tiny["model.safetensors"][: 5 * SMALL]
    hub.faults.stall["model.safetensors"] = len(begun)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.time.sleep", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            find_model(REPO)
    assert partial().read_bytes() == begun
    assert not (Path(constants.HF_HUB_CACHE) / "models--owner--tiny" / "refs").exists()
    hub.faults.stall, hub.faults.ranges = {}, ranges
    hub.take_log()
    assert (find_model(REPO) / "model.safetensors").read_bytes() == tiny["model.safetensors"]
    last = hub.take_log()[-1]
    assert last.range == f"bytes={len(begun)}-"
    assert last.sent == len(tiny["model.safetensors"]) - (len(begun) if ranges else 0)


def _interrupt(seconds: float) -> None:
    raise KeyboardInterrupt


def test_a_part_of_another_file_is_noticed(hub: Hub, tiny: Files) -> None:
    """The hash tells. The wrong part is deleted, and the next attempt succeeds."""
    hub.add(REPO, tiny)
    hub.faults.cut["model.safetensors"] = [3 * SMALL] + [0] * 6
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
        with pytest.raises(ModelNotFoundError, match="continues where it stopped"):
            find_model(REPO)
    partial().write_bytes(b"x" * (3 * SMALL))
    with pytest.raises(ModelNotFoundError, match="Its hash is") as error:
        find_model(REPO)
    assert "was not downloaded correctly" in error.value.what
    assert (find_model(REPO) / "model.safetensors").read_bytes() == tiny["model.safetensors"]


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda data: data[:-5], "Consistency check failed"),
        (lambda data: data + b"more", "Consistency check failed"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "Its hash is"),
    ],
    ids=["short", "long", "changed"],
)
def test_a_file_that_differs_from_its_announcement(hub: Hub, tiny: Files, name: str, change, why: str) -> None:
    hub.add(REPO, tiny)
    hub.faults.content[name] = change(tiny[name])
    for _ in range(2):
        with pytest.raises(ModelNotFoundError, match=why):
            find_model(REPO)
    hub.faults.content.clear()
    assert (find_model(REPO) / name).read_bytes() == tiny[name]


@pytest.mark.slow
def test_a_silent_hub(hub: Hub, tiny: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts connections and never answers; or stops in the middle of a file."""
    hub.add(REPO, tiny)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    hub.faults.silent = True
    start = time.monotonic()
    with pytest.raises(ModelNotFoundError, match="did not answer in time"):
        find_model(REPO)
    assert run(["inspect", REPO]) == 3
    assert time.monotonic() - start < 6


@pytest.mark.slow
def test_a_hub_that_stops_in_the_middle(hub: Hub, tiny: Files) -> None:
    """The library waits and tries six times, a second apart."""
    hub.add(REPO, tiny)
    hub.faults.stall["model.safetensors"] = 0
    start = time.monotonic()
    with pytest.raises(ModelNotFoundError, match="did not answer in time"):
        find_model(REPO)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(("status", "hint"), [(500, "Try again later"), (429, "Try again later"), (403, "HF_TOKEN")])
def test_other_answers(hub: Hub, tiny: Files, status: int, hint: str) -> None:
    hub.add(REPO, tiny)
    hub.faults.status = status
    with pytest.raises(ModelNotFoundError, match=f"answered {status}") as error:
        find_model(REPO)
    assert hint in error.value.hint


def test_a_server_that_is_no_hub(hub: Hub, tiny: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, tiny)
    hub.repos[REPO]["main"] = "main"
    hub.commits["main"] = tiny
    with pytest.raises(ModelNotFoundError, match="no commit"):
        find_model(REPO)


def test_names_that_leave_the_directory_are_ignored(hub: Hub, tiny: Files) -> None:
    hub.add(REPO, tiny | {"../../evil.gguf": b"x", "additional_chat_templates/../../x.jinja": b"x"})
    find_model(REPO)
    assert not any("evil" in name or "x.jinja" in name for name in hub.fetched())
    with pytest.raises(ModelNotFoundError):
        find_model(f"{REPO}:../../evil.gguf")


def test_a_mirror_that_announces_no_sizes(hub: Hub, tiny: Files) -> None:
    """The hub's own library downloads the files then."""
    hub.add(REPO, tiny)
    hub.faults.announces = False
    path = find_model(REPO)
    assert (path / "model.safetensors").read_bytes() == tiny["model.safetensors"]
    hub.take_log()
    assert find_model(REPO) == path
    assert hub.take_log() == []


def test_a_full_disk(hub: Hub, tiny: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, tiny)
    usage = namedtuple("usage", "total used free")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 1000))
        with pytest.raises(LlamaGPUError, match="has no room") as error:
            find_model(REPO)
    assert error.value.exit_code == 1
    assert "model.safetensors" not in hub.fetched()

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.http_get", full)
        with pytest.raises(LlamaGPUError, match="No space left"):
            find_model(REPO)
    find_model(REPO)


def test_a_cache_that_cannot_be_written(hub: Hub, tiny: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, tiny)
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(LlamaGPUError, match="could not be written to the cache"):
        find_model(REPO)


def test_a_complete_cache_that_is_read_only(hub: Hub, tiny: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one in an image of a container, filled by another program."""

    def refused(*arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    commit = hub.add(REPO, tiny)
    huggingface_hub.snapshot_download(REPO, cache_dir=constants.HF_HUB_CACHE)
    for name in ("touch", "write_text", "symlink_to"):
        monkeypatch.setattr(Path, name, refused)
    assert find_model(REPO).name == commit


def test_no_links(hub: Hub, tiny: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows without the right to make them: files are moved."""

    def refused(*arguments: object, **options: object) -> None:
        raise OSError("no right")

    hub.add(REPO, tiny)
    monkeypatch.setattr(Path, "symlink_to", refused)
    path = find_model(REPO)
    assert not (path / "model.safetensors").is_symlink()
    hub.take_log()
    assert find_model(REPO) == path
    assert hub.take_log() == []


# --- models that cannot be used ------------------------------------------------------------


def test_a_refused_config_saves_the_download_of_the_weights(
    hub: Hub, tiny: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads(tiny["config.json"])
    hub.add(REPO, tiny | {"config.json": json.dumps(config | {"model_type": "gpt_oss"}).encode()})
    assert run(["generate", "-m", REPO, "x"]) == 4
    assert "'gpt_oss' is not supported" in capsys.readouterr().err
    assert hub.fetched() == ["config.json", "generation_config.json"]


def test_warnings_are_left_to_the_loading(hub: Hub, tiny: Files, caplog: pytest.LogCaptureFixture) -> None:
    config = json.loads(tiny["config.json"]) | {"key": 1}
    hub.add(REPO, tiny | {"config.json": json.dumps(config).encode()})
    find_model(REPO)
    assert not caplog.records


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.safetensors": None}, "no weights as safetensors.*\nIt has consolidated.safetensors, onnx/model.onnx"),
        ({"config.json": None}, "has no config.json"),
        ({"config.json": None, "adapter_config.json": b"{}"}, "a LoRA adapter"),
        ({"config.json": None, "a.gguf": b"GGUF"}, "Name one of them: owner/tiny:a.gguf"),
    ],
    ids=["bin", "nothing", "adapter", "gguf"],
)
def test_repos_without_a_model(hub: Hub, tiny: Files, change: dict[str, bytes | None], message: str) -> None:
    hub.add(REPO, {k: v for k, v in (tiny | change).items() if v is not None})
    with pytest.raises(UnsupportedModelError, match=message):
        find_model(REPO)
    assert hub.fetched() == []
    with pytest.raises(UnsupportedModelError, match=message):
        inspect_model(REPO, None, None)


def test_a_missing_shard(hub: Hub, tiny: Files, tmp_path: Path) -> None:
    files = sharded(tiny, tmp_path / "shards")
    del files["model-00002-of-00002.safetensors"]
    hub.add(REPO, files)
    with pytest.raises(UnsupportedModelError, match=r"lacks model-00002-of-00002\.safetensors, which its index names"):
        find_model(REPO)


def test_names(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "stories").mkdir(parents=True)
    for name, expected in (
        ("no/such", "There is no model no/such on the hub, and no such directory here"),
        ("models/storis", "Or did you mean models/stories?"),
        ("./models/storis", "Did you mean models/stories?"),
        ("/nowhere/at/all", "There is no model directory /nowhere/at/all"),
        ("nothing.gguf", "There is no model file nothing.gguf"),
        ("a/b/c", "There is no model directory a/b/c"),
        ("a/b--c..d", "There is no model a/b--c..d on the hub"),
    ):
        assert run(["generate", "-m", name, "x"]) == 3
        out, err = capsys.readouterr()
        assert expected in err
        assert not out


# --- GGUF files ----------------------------------------------------------------------------


def test_a_gguf_file_of_a_repo(hub: Hub) -> None:
    parts = {f"big-{i:05}-of-00002.gguf": b"GGUF" + bytes([i]) * 100 for i in (1, 2)}
    hub.add("owner/files", {"a.Q8_0.gguf": b"GGUF1", "sub/b.gguf": b"GGUF2", "README.md": b""} | parts)
    assert find_model("owner/files:a.Q8_0.gguf").read_bytes() == b"GGUF1"
    assert hub.fetched() == ["a.Q8_0.gguf"]
    assert find_model("owner/files:sub/b.gguf", "main").read_bytes() == b"GGUF2"
    hub.take_log()
    for part in parts:  # any part names them all; the first one is opened
        path = find_model(f"owner/files:{part}")
        assert path.name == "big-00001-of-00002.gguf"
        assert {p.name for p in path.parent.glob("big*")} == set(parts)
    assert hub.fetched() == list(parts)
    with pytest.raises(ModelNotFoundError, match=r"Its GGUF files: a\.Q8_0\.gguf, big-.*, sub/b\.gguf"):
        find_model("owner/files:c.gguf")


def test_a_gguf_file_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match="HF_HUB_OFFLINE"):
        find_model("owner/files:a.gguf")
    with pytest.raises(ModelNotFoundError, match="no model file"):
        find_model("owner:a.gguf")


@pytest.mark.slow
def test_models_that_cannot_fit_are_not_downloaded(
    hub: Hub, tiny: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], device: gpu.Device
) -> None:
    """Decoders and encoders, sharded or not: only headers are fetched. ``inspect`` tells why."""
    raw = random_encoders.CONFIGS["bert"]
    path = random_encoders.write_model(tmp_path / "bert", raw, random_encoders.tensors(raw, 1))
    hub.add(REPO, tiny)
    hub.add("owner/shards", sharded(tiny, tmp_path / "shards"))
    hub.add("owner/bert", model_files(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llamagpu.model.hub.headers._FIRST_BYTES", 2000)
        for call, name in ((LLM, REPO), (LLM, "owner/shards"), (Embedder, "owner/bert"), (CrossEncoder, "owner/bert")):
            hub.take_log()
            with pytest.raises(OutOfMemoryError, match="does not fit: it needs"):
                call(name, max_memory="100kB")
            weights = [r for r in hub.take_log() if r.path.endswith(".safetensors")]
            assert weights
            assert all(r.range and r.sent <= 8000 for r in weights if r.path.startswith("/storage/"))
        assert run(["generate", "a", "-m", REPO, "--max-memory", "100kB"]) == 6
        assert "To make it fit" not in capsys.readouterr().err  # nothing does
    hub.add("owner/gguf", {"large.gguf": b"GGUF" + bytes(30_000_000)})
    with pytest.raises(OutOfMemoryError, match=r"gguf does not fit: its weights take at least 7\.0 MB"):
        LLM("owner/gguf:large.gguf", max_memory="5MB")
    blobs = Path(constants.HF_HUB_CACHE).rglob("*")
    assert not [p for p in blobs if p.is_file() and p.stat().st_size > 20_000]
    for name in (REPO, "owner/bert"):
        assert run(["inspect", name, "--max-memory", "100kB"]) == 0
        assert "The model does not fit: it needs" in capsys.readouterr().out
    with LLM(REPO, context=64, max_memory="10MB") as llm:  # a context of one's own: headers, then the file
        assert llm.generate("Once", max_tokens=2).completion_tokens
    assert [r.range is None for r in hub.take_log() if r.path.startswith("/storage/")][-1]


# --- inspect -------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [False, True], ids=["single", "sharded"])
def test_inspect_reads_headers_only(
    hub: Hub, tiny: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], shards: bool, monkeypatch
) -> None:
    monkeypatch.setattr("llamagpu.model.hub.headers._FIRST_BYTES", 1000)
    files = sharded(tiny, tmp_path / "shards") if shards else tiny
    hub.add(REPO, files)
    assert run(["inspect", REPO, "--json", "--tensors"]) == 0
    report = json.loads(capsys.readouterr().out)
    log = hub.take_log()
    weights = [r for r in log if r.path.endswith(".safetensors")]
    assert {r.range for r in weights if r.path.startswith("/storage/")} > {"bytes=0-999"}
    assert sum(r.sent for r in weights) < 20_000 < len(tiny["model.safetensors"])
    assert not Path(constants.HF_HUB_CACHE).exists()
    find_model(REPO)
    hub.take_log()
    assert run(["inspect", REPO, "--json", "--tensors"]) == 0
    assert json.loads(capsys.readouterr().out) | {"adapter": 0} == report | {"adapter": 0}
    assert hub.take_log() == []


# --- llamagpu models -----------------------------------------------------------------------


def test_models_lists_the_cache(hub: Hub, tiny: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commit = hub.add(REPO, tiny)
    other = json.dumps({"model_type": "bert"}).encode()
    hub.add("owner/bert", {"config.json": other, "model.safetensors": tiny["model.safetensors"]})
    hub.add("owner/half", sharded(tiny, tmp_path / "shards"))
    find_model(REPO)
    huggingface_hub.snapshot_download("owner/bert", cache_dir=constants.HF_HUB_CACHE)
    hub.faults.cut["model-00002-of-00002.safetensors"] = [2 * SMALL] + [0] * 6
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
        assert run(["models", "--update", "owner/half"]) == 3
    capsys.readouterr()
    assert run(["models", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    rows = {row["model"]: row for row in report["models"]}
    assert list(rows) == ["owner/bert", "owner/half", REPO]
    assert rows["owner/bert"]["reason"] == "The architecture 'bert' is not supported."
    assert rows["owner/half"]["missing"] == ["model-00002-of-00002.safetensors"]
    assert rows["owner/half"]["partial_bytes"] == 2 * SMALL
    whole = rows[REPO]
    assert (whole["revision"], whole["refs"], whole["architecture"]) == (commit, ["main"], "llama")
    assert (whole["fits"], whole["stored"], whole["missing"]) == (["auto", "int8", "int4"], ["f32"], [])
    assert whole["bytes"] == sum(len(tiny[name]) for name in (*NEEDED, "model.safetensors"))
    assert run(["models"]) == 0
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if REPO in line)
    assert line.split()[:3] == [REPO, commit[:7], "llama"]
    assert line.endswith("yes")
    assert "not supported: The architecture 'bert' is not supported." in text
    assert "incomplete: lacks model-00002-of-00002.safetensors, 8.2 kB of it downloaded" in text


def test_models_that_do_not_fit(
    hub: Hub, tiny: Files, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, tiny)
    find_model(REPO)
    monkeypatch.setenv("LLAMAGPU_MEMORY_LIMIT", "100000")
    assert run(["models"]) == 0
    assert capsys.readouterr().out.splitlines()[2].endswith("  no")


def test_models_of_an_empty_cache(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models"]) == 0
    assert "cache:\n  none\n" in capsys.readouterr().out
    assert run(["models", "--revision", "main"]) == 2
    assert run(["models", "--update", "weights"]) == 2


def test_update_downloads_and_refreshes(hub: Hub, tiny: Files, capsys: pytest.CaptureFixture[str]) -> None:
    for data in (b"one", b"two"):
        commit = hub.add(REPO, tiny | {"chat_template.jinja": data})
        assert run(["models", "--update", REPO]) == 0
        path = Path(capsys.readouterr().out.strip())
        assert (path.name, (path / "chat_template.jinja").read_bytes()) == (commit, data)
    assert run(["models", "--update", REPO, "--revision", "v1"]) == 3
    assert run(["models", "--update", REPO, "--json"]) == 0
    assert json.loads(capsys.readouterr().out[:]) == {"model": REPO, "path": str(path)}


def test_published_models() -> None:
    assert set(KNOWN) <= set(ARCHITECTURES)
    ids = [name for names in KNOWN.values() for name in names]
    assert len(set(ids)) == len(ids)
    assert all(name.count("/") == 1 for name in ids)


# --- the command, by its environment variables ---------------------------------------------


@pytest.mark.slow
def test_ctrl_c_leaves_a_download_that_continues(hub: Hub, tmp_path: Path) -> None:
    c = random_models.config(vocab_size=120_000, num_hidden_layers=1, torch_dtype="float16")
    weights = {k: np.zeros_like(v) for k, v in random_models.tensors(c, 1).items()}
    files = model_files(random_models.write_model(tmp_path / "m", c, weights))
    size = len(files["model.safetensors"])
    assert size > 12_000_000  # the library writes in pieces of 10 MB
    hub.add(REPO, files)
    hub.faults.stall["model.safetensors"] = 12_000_000
    command = [sys.executable, "-m", "llamagpu", "models", "--update", REPO]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment(hub, tmp_path / "home")}
    process = subprocess.Popen(command, **options)
    blobs = tmp_path / "home" / "hub" / "models--owner--tiny" / "blobs"
    wait_until(lambda: any(p.stat().st_size >= 8_000_000 for p in blobs.glob("*.incomplete")))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err.strip()) == (130, b"", b"interrupted")
    hub.faults.stall = {}
    hub.take_log()
    done = subprocess.run(command, capture_output=True, timeout=60, env=options["env"])
    assert done.returncode == 0, done.stderr.decode()
    last = hub.take_log()[-1]
    assert last.range is not None
    assert last.sent <= size - 8_000_000
    assert (Path(done.stdout.decode().strip()) / "model.safetensors").stat().st_size == size


@pytest.mark.slow
def test_the_hubs_variables(hub: Hub, tiny: Files, tmp_path: Path) -> None:
    """HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_TOKEN and HF_HUB_OFFLINE."""
    hub.add(REPO, tiny)
    env = environment(hub, tmp_path / "home") | {"HF_TOKEN": "hf_secret"}
    command = [sys.executable, "-m", "llamagpu", "models", "--update", REPO]
    done = subprocess.run(command, capture_output=True, timeout=60, env=env)
    assert done.stdout.decode().startswith(str(tmp_path / "home" / "hub"))
    assert hub.take_log()[0].token == "Bearer hf_secret"
    other = env | {"HF_HUB_CACHE": str(tmp_path / "other"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, timeout=60, env=other)
    assert done.returncode == 3
    assert b"HF_HUB_OFFLINE is set" in done.stderr
    assert hub.take_log() == []
