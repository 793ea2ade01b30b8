"""Tunings: built-in rules, measurements, storage, and results that no choice changes."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import random_models

from llamagpu import LLM, gpu, kernels
from llamagpu.cli.main import run
from llamagpu.gpu import Lanes, TunedLanes, Tuning, store_tuning, tuning_path
from llamagpu.gpu.tuning_store import stored_tuning
from llamagpu.model import prepare, prepare_model, prepare_shape
from llamagpu.model.tuner import _MANY, _Tuner, passes, tune
from llamagpu.model.tuner_attention import StepAttention
from llamagpu.model.tuner_products import _CHAIN_BYTES, shapes_of

GPU = Tuning(matvec="lanes", matmul="tiled", attention="whole", trusted=True)
FULL = frozenset({"shader-f16", "subgroup"})


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of stored tunings, which does not exist yet. Devices use stored tunings during the test."""
    monkeypatch.setenv("LLAMAGPU_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LLAMAGPU_TUNING")
    return tmp_path / "cache" / "tuning.json"


def test_stored_tunings_come_back(kept: Path, device: gpu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    lanes = TunedLanes("f16", 2048, 512, Lanes(64, True, 2, 4, 256)), TunedLanes("affine4", 2048, 512, Lanes())
    tuning = replace(GPU, lanes=lanes)
    assert stored_tuning(device.adapter, FULL, 8) is None
    assert store_tuning(device.adapter, tuning) == kept == tuning_path()
    assert stored_tuning(device.adapter, FULL, 8) == tuning
    with gpu.open() as other:
        assert other.tuning == tuning
        assert other.measured
    with gpu.open(baseline=True) as other:
        assert not other.measured
    monkeypatch.setenv("LLAMAGPU_TUNING", "built-in")
    assert stored_tuning(device.adapter, FULL, 8) is None


def test_unusable_stored_tunings_are_ignored(kept: Path, device: gpu.Device) -> None:
    store_tuning(device.adapter, replace(GPU, reduce="subgroup"))
    assert stored_tuning(device.adapter, frozenset(), 8) is None
    store_tuning(device.adapter, Tuning(words="u64"))
    assert stored_tuning(device.adapter, FULL, 8) is None
    store_tuning(device.adapter, Tuning(share="subgroup"))
    assert stored_tuning(device.adapter, FULL, 32) is None
    ((key, values),) = json.loads(kept.read_text()).items()
    for damaged in (
        "no JSON",
        json.dumps({key: 3}),
        json.dumps({key: values | {"reduce": 3}}),
        json.dumps({key: values | {"lanes": [{"format": "f16", "columns": 8, "rows": 8, "cut": {"lanes": "many"}}]}}),
        json.dumps({key: values | {"lanes": [["f16 8 8", {"lanes": 32}]]}}),
        json.dumps({key: values | {"unknown": 1}}),
        json.dumps({key + "0": values}),  # another version or driver
    ):
        kept.write_text(damaged)
        assert stored_tuning(device.adapter, FULL, 8) is None, damaged


def test_tunings_of_several_models_are_stored_together(kept: Path, device: gpu.Device) -> None:
    """A later model's choice for a format and columns removes earlier ones with another order of additions."""
    first = (
        TunedLanes("f16", 64, 8, Lanes(32)),
        TunedLanes("f16", 64, 80, Lanes(32, rows=4)),
        TunedLanes("f16", 96, 8, Lanes(64)),
    )
    later = TunedLanes("f16", 64, 24, Lanes(64)), TunedLanes("bf16", 64, 8, Lanes())
    store_tuning(device.adapter, replace(GPU, lanes=first))
    store_tuning(device.adapter, replace(GPU, lanes=later))
    found = stored_tuning(device.adapter, FULL, 8)
    assert found is not None
    assert found.lanes == (first[2], *later)


def test_the_order_of_additions_depends_on_columns_and_format_alone() -> None:
    for format in ("f32", "f16", "bf16", "affine8", "affine4"):
        for columns in (64, 576, 2048, 8192, 14336):
            assert len({Tuning().lanes_for(format, columns, rows).order for rows in (1, 64, 9000, 128256)}) == 1
    tuned = replace(GPU, lanes=(TunedLanes("f16", 2048, 512, Lanes(64, False, 2, 4, 256)),))
    assert tuned.lanes_for("f16", 2048, 512) == Lanes(64, False, 2, 4, 256)
    for rows in (3, 128256):
        cut = tuned.lanes_for("f16", 2048, rows)
        assert cut.order == (64, False)
        assert cut.workgroup // cut.lanes * cut.rows % 4 == 0
    assert tuned.lanes_for("f16", 4096, 512).order == Tuning().lanes_for("f16", 4096, 512).order


def test_only_software_adapters_with_64_bit_integers_load_them() -> None:
    wide = FULL | {"shader-int64"}
    assert [gpu.default_tuning("software", f, 8).words for f in (FULL, wide)] == ["u32", "u64"]
    assert gpu.default_tuning("discrete", wide, 32).words == "u32"


@pytest.mark.slow
def test_tuning_a_model(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tuning is measured once, stored, and used by the next device. The greedy text stays the same."""
    config = random_models.config(max_position_embeddings=128)
    random_models.write_model(tmp_path / "model", config, random_models.tensors(config, 0, 1.0))
    with LLM(tmp_path / "model") as llm:
        assert not llm.device.measured
        expected = llm.generate([1, 2, 3], max_tokens=8, ignore_eos=True).token_ids
    with LLM(tmp_path / "model", tune=True) as llm:
        assert llm.generate([1, 2, 3], max_tokens=8, ignore_eos=True).token_ids == expected
        chosen = llm._session.model.forward.tuning
    assert kept.is_file()
    monkeypatch.setattr("llamagpu.model.tuner.passes", lambda *_: True)  # the kernels were checked by the first run
    with gpu.open() as device:
        assert device.tuning == chosen
        lines: list[str] = []
        tune(device, prepare(tmp_path / "model").layout, lines.append)
        assert device.tuning == chosen  # measuring does not change the device's own
        for what in ("a token", "attention", "bounds checks"):
            assert any(what in line for line in lines), what
        assert any("bounds checks" in line for line in lines)
        assert device.ledger.held("weights") == 0


@pytest.mark.slow
def test_tuning_as_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that is measured on GPUs alone, with fewer divisions than there; its time may end at any choice."""
    config = random_models.config(max_position_embeddings=600, num_hidden_layers=1)
    random_models.write_model(tmp_path, config, random_models.tensors(config, 0, 1.0))
    monkeypatch.setattr("llamagpu.model.tuner.passes", lambda *_: True)
    monkeypatch.setattr("llamagpu.model.candidates._TEAMS_SHORT", ((32, 128, 4),))
    monkeypatch.setitem(_MANY, "discrete", 16)
    monkeypatch.setitem(_CHAIN_BYTES, "discrete", 1_000_000)
    layout, lines = prepare_model(tmp_path, None, "float16").layout, []
    with gpu.open() as device:
        device.adapter = replace(device.adapter, kind="discrete")
        chosen = tune(device, layout, lines.append)
        assert (chosen.matvec, chosen.matmul, chosen.order) == ("lanes", "tiled", "plain")
        assert {(t.rows, t.columns) for t in chosen.lanes} == {
            (s.matrix.rows, s.matrix.columns) for s in shapes_of(layout)
        }
        for what in ("reduce=", "GB/s", "rows for several", "attention=", "merged_runs=", "tiles=", "bounds checks"):
            assert any(what in line for line in lines), what
        late = tune(device, layout, lines.append, 0.0)
        assert late.lanes == ()
        assert not late.trusted
        assert any("left out: divisions" in line for line in lines)


def test_models_on_a_shared_device_keep_their_tunings(device: gpu.Device, tmp_path: Path) -> None:
    """A model runs with the tuning it was loaded with, whatever other threads use or measure meanwhile."""
    config = random_models.config(max_position_embeddings=128)
    random_models.write_model(tmp_path, config, random_models.tensors(config, 0, 1.0))
    other = replace(gpu.variants(frozenset(), 0)[1], trusted=device.tuning.trusted)
    with LLM(tmp_path, device=device) as first:
        with device.using(other):
            second = LLM(tmp_path, device=device)
            seen: list[Tuning] = []
            thread = threading.Thread(target=lambda: seen.append(device.tuning))
            thread.start()
            thread.join()
        assert seen == [device.tuning] != [other]
        with second:
            found = [llm.generate([1, 2, 3], max_tokens=6, ignore_eos=True).token_ids for llm in (first, second)]
            assert found[0] == found[1]
            for llm, tuning in ((first, device.tuning), (second, other)):
                plan = llm._session.model.forward.decode(1, 10, True)
                shaders = {d.program.shader for d in plan.dispatches}
                assert f"product_{tuning.matvec}" in shaders
                assert llm._session.model.weights.head.woven == (tuning.order == "woven")


def test_attention_changes_only_where_that_saves_time(device: gpu.Device) -> None:
    """A gain of less than 3 % changes nothing, nor does a model with too short a context for several runs."""

    class Steps:
        def __init__(self, whole: float, merged: float, deep: bool = True):
            self.whole, self.merged, self.deep = whole, merged, deep

        def depths(self, wanted: tuple[int, ...], least: int = 1) -> list[int]:
            return list(wanted) if least == 1 or self.deep else []

        def seconds(self, options: list[Tuning], depths: list[int]) -> dict[Tuning, float]:
            if len({t.attention for t in options}) == 2:
                return {t: self.whole if t.attention == "whole" else 1.0 for t in options}
            return {t: self.merged if t.merged_runs == 4 else 1.0 for t in options}

    tuner, base = _Tuner(device, []), Tuning(merged_runs=1)
    for steps, expected in (
        (Steps(0.9, 1.1), ("whole", 1)),
        (Steps(0.98, 0.98), ("blocks", 1)),
        (Steps(1.1, 0.9), ("blocks", 4)),
        (Steps(1.1, 0.9, deep=False), ("blocks", 1)),
    ):
        found = tuner._attention(base, steps)  # type: ignore[arg-type]
        assert (found.attention, found.merged_runs) == expected


def test_a_tuning_may_end_early(device: gpu.Device, tmp_path: Path) -> None:
    """What no time is left for stays built in, and is named."""
    config = random_models.config(max_position_embeddings=300)
    random_models.write_model(tmp_path, config, random_models.tensors(config, 0, 1.0))
    layout, lines = prepare(tmp_path).layout, []
    steps = StepAttention(device, layout)
    assert steps.depths((128, 2000)) == [128, 299]
    assert steps.depths((128, 2000), 256) == [299]
    times = steps.seconds([device.tuning, replace(device.tuning, merged_runs=4)], [299])
    assert min(times.values()) > 0
    chosen = tune(device, layout, lines.append, 0.0)
    assert replace(chosen, order=device.tuning.order) == device.tuning
    left_out = [line.partition("left out: ")[2] for line in lines if "left out" in line]
    assert left_out == ["attention", "merged_runs", "bounds checks"]


def test_trust_needs_every_kernel_that_models_run(device: gpu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """One wrong kernel is enough to lose trust."""
    tuner = _Tuner(device, [], print)
    checked: list[str] = []

    def passes(device: gpu.Device, tuning: Tuning, names: list[str]) -> bool:
        checked.extend(names)
        return "sample" not in names

    monkeypatch.setattr("llamagpu.model.tuner.passes", passes)
    assert not tuner._trusts(device.tuning)
    used = ("sample", "softmax", "attention_prefill", "attention_decode", "begin_step", "embedding", "rms_norm", "qkv")
    assert set(used) <= set(checked)
    tuner._end = 0.0  # the time is over: as built in
    assert tuner._trusts(device.tuning) == gpu.default_tuning(device.adapter.kind, device.features, 0).trusted


def test_shapes_of_a_model() -> None:
    shapes = shapes_of(prepare_shape("llama-3.2-1b", "int4").layout)
    assert {(s.matrix.rows, s.matrix.columns, s.count, s.normed) for s in shapes} == {
        (3072, 2048, 16, True),
        (2048, 2048, 16, False),
        (16384, 2048, 16, True),
        (2048, 8192, 16, False),
        (128256, 2048, 1, True),
    }
    assert shapes[-1].matrix.rows == 128256
    assert {s.matrix.format_name for s in shapes} == {"affine4"}


def test_a_wrong_variant_does_not_pass(device: gpu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    assert passes(device, device.tuning, ("matvec",))
    monkeypatch.setitem(kernels.REGISTRY, "matvec", replace(kernels.REGISTRY["matvec"], tolerance=1e-12))
    assert not passes(device, device.tuning, ("matvec",))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "tuning"),
    [
        pytest.param("float16", None, id="built-in"),
        pytest.param("float16", GPU, id="gpu"),
        pytest.param(
            "int8", replace(GPU, all_lanes=Lanes(32, False, 2, 2, 128, 2, passes=3), squares="joined"), id="narrow"
        ),
        pytest.param("int4", replace(GPU, all_lanes=Lanes(64, True, 4, 4, 256)), id="wide"),
    ],
)
def test_longer_sequences_in_a_batch_change_no_bit(dtype: str, tuning: Tuning | None, tmp_path: Path) -> None:
    """Short sequences give the same bits beside longer ones, whose attention has several runs.

    On GPUs the projection merges the runs of a single sequence, and a separate dispatch those of a batch. A short
    sequence alone needs no merge.
    """
    config = random_models.config(hidden_size=128, head_dim=32, num_attention_heads=4, intermediate_size=192)
    random_models.write_model(tmp_path, config, random_models.tensors(config, 3, 1.0))
    prompts = [random_models.prompt(config, n, n) for n in (3, 20, 254, 300, 7)]
    with gpu.open() as device, device.using(tuning or device.tuning), LLM(tmp_path, device=device, dtype=dtype) as llm:
        alone = [bits(llm, [p])[0] for p in prompts]
        assert bits(llm, prompts) == alone


def bits(llm: LLM, prompts: list[list[int]]) -> list[list[tuple]]:
    """Every token of prompts that run together, with the log-probabilities of the likeliest tokens."""
    streams = [llm.stream(p, max_tokens=6, ignore_eos=True, logprobs=5) for p in prompts]
    return [[(t.id, t.logprob, *t.top) for t in s.result.logprobs or []] for s in streams]


@pytest.mark.slow
def test_tune_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The README's example, which tests/test_project.py runs, checks all kernels, too."""
    monkeypatch.setattr("llamagpu.model.tuner.passes", lambda *_: True)
    monkeypatch.setenv("LLAMAGPU_CACHE", str(tmp_path / "kept"))
    assert run(["tune", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tuning"].keys() == asdict(Tuning()).keys()
    assert (tmp_path / "kept" / "tuning.json").is_file()
    monkeypatch.setenv("LLAMAGPU_CACHE", "/proc/nowhere")
    assert run(["tune"]) == 1
    assert "cannot be kept" in capsys.readouterr().err
    assert run(["tune", "--shape", "smollm2-135m", "-m", "weights/stories"]) == 2
    assert "exclude one another" in capsys.readouterr().err
