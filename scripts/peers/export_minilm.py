"""Export all-MiniLM-L6-v2 to ONNX: token ids and their mask to the mean of the last layer's vectors.

python export_minilm.py DIR     reads DIR/minilm, writes DIR/minilm.onnx
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModel


class MeanPooled(torch.nn.Module):
    """An encoder, and sentence-transformers' mean pooling."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Vectors of texts, [texts, hidden], from ids and mask [texts, tokens]."""
        x = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        held = mask.unsqueeze(-1).to(x.dtype)
        return (x * held).sum(1) / held.sum(1)


def main() -> None:
    """Export, with texts and tokens as dynamic dimensions."""
    directory = Path(sys.argv[1])
    model = MeanPooled(AutoModel.from_pretrained(directory / "minilm", dtype=torch.float32)).eval()
    ids = torch.randint(1000, 2000, (3, 17))
    torch.onnx.export(
        model,
        (ids, torch.ones_like(ids)),
        directory / "minilm.onnx",
        input_names=["ids", "mask"],
        output_names=["vectors"],
        dynamic_shapes={name: {0: "texts", 1: "tokens"} for name in ("ids", "mask")},
        dynamo=True,
        external_data=False,
    )


if __name__ == "__main__":
    main()
