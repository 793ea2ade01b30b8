"""Write random weights of the measured shape, as a Hugging Face directory (float16) and as GGUF.

python make_models.py DIR
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np
import torch
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
    return weight.reshape(heads, 2, SHAPE["head_dim"] // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(model: LlamaForCausalLM, path: Path) -> None:
    """Write the model as GGUF, without a vocabulary."""
    tensors = {name: t.detach().numpy() for name, t in model.state_dict().items()}
    out = gguf.GGUFWriter(str(path), "llama")
    out.add_context_length(SHAPE["max_position_embeddings"])
    out.add_embedding_length(SHAPE["hidden_size"])
    out.add_block_count(SHAPE["num_hidden_layers"])
    out.add_feed_forward_length(SHAPE["intermediate_size"])
    out.add_head_count(SHAPE["num_attention_heads"])
    out.add_head_count_kv(SHAPE["num_key_value_heads"])
    out.add_rope_freq_base(SHAPE["rope_theta"])
    out.add_rope_dimension_count(SHAPE["head_dim"])
    out.add_layer_norm_rms_eps(SHAPE["rms_norm_eps"])
    out.add_vocab_size(SHAPE["vocab_size"])
    out.add_file_type(1)
    out.add_tokenizer_model("none")
    out.add_tensor("token_embd.weight", tensors["model.embed_tokens.weight"])
    out.add_tensor("output_norm.weight", tensors["model.norm.weight"].astype(np.float32))
    heads = {"attn_q": SHAPE["num_attention_heads"], "attn_k": SHAPE["num_key_value_heads"]}
    for i in range(SHAPE["num_hidden_layers"]):
        for theirs, ours in NAMES.items():
            w = tensors[f"model.layers.{i}.{theirs}.weight"]
            w = adjacent_pairs(w, heads[ours]) if ours in heads else w
            out.add_tensor(f"blk.{i}.{ours}.weight", np.ascontiguousarray(w.astype(np.float32) if w.ndim == 1 else w))
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
