"""Write random weights of the measured shape, as a Hugging Face directory (float16) and as GGUF.

python make_models.py DIR
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from runner import SHAPE
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def adjacent_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k in the order of GGUF's llama, where rotary pairs are adjacent."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def add_config(out: gguf.GGUFWriter, c: LlamaConfig) -> None:
    """Write the model's shape."""
    out.add_context_length(c.max_position_embeddings)
    out.add_embedding_length(c.hidden_size)
    out.add_block_count(c.num_hidden_layers)
    out.add_feed_forward_length(c.intermediate_size)
    out.add_head_count(c.num_attention_heads)
    out.add_head_count_kv(c.num_key_value_heads)
    out.add_rope_freq_base(c.rope_parameters["rope_theta"])
    out.add_rope_dimension_count(c.head_dim)
    out.add_layer_norm_rms_eps(c.rms_norm_eps)
    out.add_vocab_size(c.vocab_size)
    out.add_file_type(1)


def write_gguf(
    model: LlamaForCausalLM,
    path: Path,
    matrices: Type = Type.F16,
    vocabulary: Callable[[gguf.GGUFWriter], None] = lambda out: out.add_tokenizer_model("none"),
) -> None:
    """Write the model as GGUF.

    Args:
        matrices: the type of all matrices; vectors are float32.
        vocabulary: writes the tokenizer's fields; by default, there is none.
    """
    c = model.config
    out = gguf.GGUFWriter(str(path), "llama")
    add_config(out, c)
    vocabulary(out)

    def add(name: str, tensor: torch.Tensor, heads: int = 0) -> None:
        w = tensor.detach().float().numpy()
        w = np.ascontiguousarray(adjacent_pairs(w, heads) if heads else w)
        kind = matrices if w.ndim > 1 else Type.F32
        out.add_tensor(name, gguf.quantize(w, kind), raw_dtype=kind)

    tensors = model.state_dict()
    add("token_embd.weight", tensors["model.embed_tokens.weight"])
    add("output_norm.weight", tensors["model.norm.weight"])
    heads = {"attn_q": c.num_attention_heads, "attn_k": c.num_key_value_heads}
    for i in range(c.num_hidden_layers):
        for theirs, ours in NAMES.items():
            add(f"blk.{i}.{ours}.weight", tensors[f"model.layers.{i}.{theirs}.weight"], heads.get(ours, 0))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def main() -> None:
    directory = Path(sys.argv[1])
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, bos_token_id=1, eos_token_id=2, pad_token_id=0)).to(torch.float16)
    model.save_pretrained(directory / "hf")
    words = Tokenizer(models.BPE(vocab={f"t{i}": i for i in range(SHAPE["vocab_size"])}, merges=[], unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.ByteLevel()
    special = {"bos_token": "t1", "eos_token": "t2", "pad_token": "t0", "unk_token": "t0"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(directory / "hf")
    write_gguf(model, directory / "smol135m-f16.gguf")


if __name__ == "__main__":
    main()
