#!/usr/bin/env python3
"""Train the small Llama that llamagpu ships in ``weights/``.

Development only: needs the ``oracle`` extra (torch). Everything is seeded and the run resumes from
``--work`` after an interruption, at the last finished epoch:

    python scripts/train_default_model.py --text stories.txt --out weights/stories-3m

The text holds one story after another: a single line break ends a story, a blank line ends a paragraph.
Text that is all lower case gets its capitals back first (see ``restore_case``), because people read the result.
With ``--sample-from`` another small Llama writes more stories, from which the first epochs learn too.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import math
import os
import re
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 2048,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
}
# UTF-8 punctuation that was read as Windows-1252 somewhere upstream, and its plain form.
MOJIBAKE = {"â€œ": '"', "â€\x9d": '"', "â€™": "'", "â€˜": "'", "â€”": "-", "â€“": "-", "â€¦": "...", "â€": '"'}
PLAIN_QUOTES = {"“": '"', "”": '"', "’": "'", "‘": "'"}


# --- text ---------------------------------------------------------------------------------------


def read_stories(path: Path) -> list[str]:
    """The stories of a file, cleaned: plain punctuation, ASCII only, neither fragments nor duplicates."""
    text = path.read_text(encoding="utf-8")
    for bad, good in (MOJIBAKE | PLAIN_QUOTES).items():
        text = text.replace(bad, good)
    stories = (s.strip() for s in re.split(r"(?<!\n)\n(?!\n)", text))
    kept = dict.fromkeys(s for s in stories if len(s) > 200 and s.isascii())
    return list(kept)


def restore_case(stories: list[str]) -> list[str]:
    """Give lower-cased stories capitals: sentence starts, ``I``, and names.

    A name is a word that often follows "named", "name was" or "name is", or does so in the same story.
    """
    if any(c.isupper() for c in "".join(stories[:200])):
        return stories
    introduced = re.compile(r"\b(?:named|name was|name is) ([a-z]{2,})\b")
    counts = collections.Counter(w for s in stories for w in re.findall(r"[a-z]+", s))
    named = collections.Counter(w for s in stories for w in introduced.findall(s))
    after_article = re.compile(r"\b(?:a|an|the|his|her|my|your|their|and) ([a-z]+)\b(?! (?:and|was|said))")
    common = collections.Counter(w for s in stories for w in after_article.findall(s))
    names = {w for w, n in named.items() if n >= 2 and n / counts[w] > 0.01 and common[w] / counts[w] < 0.12}
    speech = (
        r"(?:\w+ )?(?:said|asked|shouted|cried|replied|exclaimed|yelled|called|whispered|answered|screamed|squeaked)\b"
    )
    sentence = re.compile(rf'(^|[.!?]\s+"?|[.!?]"\s+"|[.!?]"\s+(?!{speech})|\n"?|[,:] ")([a-z])')
    out = []
    for story in stories:
        local = names | {w for w in introduced.findall(story) if len(w) > 2}
        story = re.sub(r"[a-z]+", lambda m, k=local: m[0].capitalize() if m[0] in k else m[0], story)
        story = re.sub(r"\bi\b", "I", story)
        out.append(sentence.sub(lambda m: m[1] + m[2].upper(), story))
    return out


@torch.no_grad()
def sample_stories(model_dir: Path, count: int, seed: int, path: Path, batch: int = 128) -> list[str]:
    """Complete stories that another model writes at temperature 1, kept in ``path`` for the next run."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if path.exists():
        return path.read_text().split("\x00")
    model, tok = AutoModelForCausalLM.from_pretrained(model_dir), AutoTokenizer.from_pretrained(model_dir)
    torch.manual_seed(seed)
    bos, stories = tok.bos_token_id, []
    while len(stories) < count:
        start = torch.full((batch, 1), bos)
        options = {"max_new_tokens": 480, "eos_token_id": bos, "pad_token_id": bos, "top_k": 0}
        out = model.generate(start, attention_mask=torch.ones_like(start), do_sample=True, **options)
        ended = [row[1:].tolist() for row in out if (row[1:] == bos).any()]
        texts = [tok.decode(row[: row.index(bos)]).replace("\n", "\n\n").strip() for row in ended]
        stories += [t for t in texts if len(t) > 200 and t.isascii()]
        print(f"{len(stories)} stories sampled", flush=True)
    path.write_text("\x00".join(stories))
    return stories


def split(stories: list[str], every: int = 50) -> tuple[list[str], list[str]]:
    """Train and held-out parts; the choice hashes the story, so it does not depend on order."""
    held = [int(hashlib.sha256(s.encode()).hexdigest(), 16) % every == 0 for s in stories]
    return [s for s, h in zip(stories, held, strict=True) if not h], [
        s for s, h in zip(stories, held, strict=True) if h
    ]


def train_tokenizer(stories: list[str]) -> Tokenizer:
    """Byte-level BPE, so that any text can be encoded; BOS is put in front as Llama does."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(
        stories,
        trainers.BpeTrainer(
            vocab_size=CONFIG["vocab_size"],
            special_tokens=[BOS, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tok.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return tok


# --- model --------------------------------------------------------------------------------------


class Layer(nn.Module):
    def __init__(self, c: dict, dropout: float):
        super().__init__()
        h, d = c["hidden_size"], c["head_dim"]
        self.heads, self.kv_heads, self.d = c["num_attention_heads"], c["num_key_value_heads"], d
        self.input_layernorm = nn.RMSNorm(h, eps=c["rms_norm_eps"])
        self.post_attention_layernorm = nn.RMSNorm(h, eps=c["rms_norm_eps"])
        self.q_proj = nn.Linear(h, self.heads * d, bias=False)
        self.k_proj = nn.Linear(h, self.kv_heads * d, bias=False)
        self.v_proj = nn.Linear(h, self.kv_heads * d, bias=False)
        self.o_proj = nn.Linear(self.heads * d, h, bias=False)
        self.gate_proj = nn.Linear(h, c["intermediate_size"], bias=False)
        self.up_proj = nn.Linear(h, c["intermediate_size"], bias=False)
        self.down_proj = nn.Linear(c["intermediate_size"], h, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        b, t, _ = x.shape
        y = self.input_layernorm(x)
        q, k, v = (
            p(y).view(b, t, n, self.d).transpose(1, 2)
            for p, n in ((self.q_proj, self.heads), (self.k_proj, self.kv_heads), (self.v_proj, self.kv_heads))
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.drop(self.o_proj(y.transpose(1, 2).reshape(b, t, -1)))
        y = self.post_attention_layernorm(x)
        return x + self.drop(self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y)))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


class Llama(nn.Module):
    def __init__(self, c: dict, dropout: float):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c, dropout) for _ in range(c["num_hidden_layers"]))
        self.norm = nn.RMSNorm(c["hidden_size"], eps=c["rms_norm_eps"])
        self.drop = nn.Dropout(dropout)
        pos = torch.arange(c["max_position_embeddings"], dtype=torch.float32)
        inv = c["rope_theta"] ** (-torch.arange(0, c["head_dim"], 2, dtype=torch.float32) / c["head_dim"])
        self.register_buffer("cos", torch.outer(pos, inv).cos(), persistent=False)
        self.register_buffer("sin", torch.outer(pos, inv).sin(), persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                scale = 0.02 / math.sqrt(2 * c["num_hidden_layers"]) if "o_proj" in name or "down" in name else 0.04
                nn.init.normal_(p, std=scale if "embed" not in name else 0.02)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        t = ids.shape[1]
        x = self.drop(self.embed_tokens(ids))
        for layer in self.layers:
            x = layer(x, self.cos[:t], self.sin[:t])
        return F.linear(self.norm(x), self.embed_tokens.weight)


# --- training -----------------------------------------------------------------------------------


def encode(tok: Tokenizer, stories: list[str]) -> np.ndarray:
    ids = [[*e.ids, 1] for e in tok.encode_batch(stories)]
    return np.concatenate([np.array(i, np.int64) for i in ids])


def windows(tokens: np.ndarray, length: int, seed: int) -> torch.Tensor:
    """One epoch: windows of ``length + 1`` tokens, cut at a seeded offset, in a seeded order."""
    rng = np.random.default_rng(seed)
    start = int(rng.integers(length))
    n = (len(tokens) - start - 1) // length
    index = start + np.arange(n)[:, None] * length + np.arange(length + 1)
    return torch.from_numpy(tokens[index[rng.permutation(n)]])


@torch.no_grad()
def held_out_loss(model: Llama, tok: Tokenizer, stories: list[str]) -> tuple[float, float]:
    """Mean nats per token and per character of the held-out stories, each read from its own start."""
    model.eval()
    total, tokens, chars = 0.0, 0, 0
    for e in tok.encode_batch(stories):
        ids = torch.tensor([[*e.ids, 1][: CONFIG["max_position_embeddings"] + 1]])
        total += F.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:], reduction="sum").item()
        tokens += ids.shape[1] - 1
        chars += len(tok.decode(ids[0].tolist())) + 1
    model.train()
    return total / tokens, total / chars


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    stories = restore_case(read_stories(args.text))
    train_part, held = split(stories)
    args.work.mkdir(parents=True, exist_ok=True)
    tok_path = args.work / "tokenizer.json"
    if not tok_path.exists():
        train_tokenizer(train_part).save(str(tok_path))
    tok = Tokenizer.from_file(str(tok_path))
    tokens = encode(tok, train_part)
    more = tokens
    if args.sample_from:
        sampled = sample_stories(args.sample_from, args.sample_stories, args.seed, args.work / "sampled.txt")
        more = np.concatenate([tokens, encode(tok, sampled)])
    model = Llama(CONFIG, args.dropout)
    params = sum(p.numel() for p in model.parameters())
    print(f"{len(train_part)} stories, {len(tokens):,} tokens, {len(more):,} with sampled ones", flush=True)
    print(f"{len(held)} stories held out; {params:,} parameters", flush=True)
    decay = [p for p in model.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if p.dim() != 2]
    opt = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=args.lr, betas=(0.9, 0.95)
    )
    parts = [more if e < args.sampled_epochs else tokens for e in range(args.epochs)]
    steps = [(len(p) // args.length - 1) // args.batch for p in parts]
    total, warmup = sum(steps), 100
    state = {"epoch": 0, "best": math.inf, "best_epoch": -1}
    checkpoint = args.work / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        opt.load_state_dict(saved["opt"])
        state = saved["state"]
    while state["epoch"] < args.epochs and state["epoch"] - state["best_epoch"] <= args.patience:
        epoch, begin = state["epoch"], time.time()
        torch.manual_seed(args.seed * 1000 + epoch)
        batches = windows(parts[epoch], args.length, args.seed * 1000 + epoch).split(args.batch)[: steps[epoch]]
        for step, batch in enumerate(batches, sum(steps[:epoch])):
            frac = max(0.0, (step - warmup) / max(1, total - warmup))
            lr = args.lr * min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * frac)))
            for g in opt.param_groups:
                g["lr"] = lr
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(batch[:, :-1])
            loss = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
            opt.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
        per_token, per_char = held_out_loss(model, tok, held)
        state["epoch"] += 1
        if per_char < state["best"]:
            state |= {"best": per_char, "best_token": per_token, "best_epoch": epoch}
            torch.save(model.state_dict(), args.work / "best.pt")
        torch.save({"model": model.state_dict(), "opt": opt.state_dict(), "state": state}, args.work / "new.pt")
        os.replace(args.work / "new.pt", checkpoint)
        seconds = time.time() - begin
        print(
            f"epoch {epoch + 1}: train {loss.item():.3f}, held out {per_token:.4f} nats/token "
            f"{per_char:.4f} nats/character, {seconds:.0f} s",
            flush=True,
        )
    model.load_state_dict(torch.load(args.work / "best.pt", weights_only=True))
    export(model, tok, tok_path, args, held, state)


def export(
    model: Llama, tok: Tokenizer, tok_path: Path, args: argparse.Namespace, held: list[str], state: dict
) -> None:
    """Write the Hugging Face layout, and print the held-out loss of the stored weights (bfloat16)."""
    args.out.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, p in model.state_dict().items():
        for part, owner in (("_proj", "mlp" if "gate" in name or "up_" in name or "down" in name else "self_attn"),):
            if part in name:
                head, leaf = name.rsplit(".", 2)[0], name.split(".")[-2]
                name = f"{head}.{owner}.{leaf}.weight"
        tensors["model." + name] = p.to(torch.bfloat16).contiguous()
        p.copy_(p.to(torch.bfloat16))
    save_file(tensors, args.out / "model.safetensors", metadata={"format": "pt"})
    per_token, per_char = held_out_loss(model, tok, held)
    (args.out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    generation = {"bos_token_id": 0, "eos_token_id": 1}
    (args.out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONFIG["max_position_embeddings"],
        # Not a chat model: a "conversation" with it is a story written by turns.
        "chat_template": "{{ bos_token }}{{ messages | map(attribute='content') | join(' ') }}",
    }
    (args.out / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")
    (args.out / "tokenizer.json").write_text(tok_path.read_text())
    if args.held_out:
        args.held_out.write_text("\n".join(held[:40]) + "\n")
    print(
        f"best epoch {state['best_epoch'] + 1}; as stored: {per_token:.4f} nats/token, {per_char:.4f} nats/character "
        f"over {len(held)} held-out stories"
    )


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--text", type=Path, required=True, help="the stories to train on")
    p.add_argument("--out", type=Path, default=Path("weights/stories"), help="where the model is written")
    p.add_argument("--work", type=Path, default=Path("build/train"), help="checkpoints; a second run resumes here")
    p.add_argument("--sample-from", type=Path, help="a model directory (transformers) that writes more stories")
    p.add_argument("--sample-stories", type=int, default=10000, help="number of stories to sample")
    p.add_argument("--sampled-epochs", type=int, default=4, help="number of first epochs that learn from them too")
    p.add_argument("--epochs", type=int, default=11)
    p.add_argument("--patience", type=int, default=2, help="epochs without a better held-out loss before it stops")
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--length", type=int, default=512, help="tokens in a training window")
    p.add_argument("--lr", type=float, default=3e-3)
    p.add_argument("--dropout", type=float, default=0.1)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--held-out", type=Path, help="write 40 held-out stories here, for llamagpu perplexity")
    train(p.parse_args())


if __name__ == "__main__":
    main()
