"""Linear layers whose weights lie as a CPU's 16-bit products want them."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import nn


class PackedLinear(nn.Module):
    """Computes what `nn.Linear` does, whose weights torch copies into that layout in every call.

    This is what torch's own compiler makes of a layer whose weights will not change.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = linear.bias
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def forward(self, x: torch.Tensor) -> Any:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def pack_linear_layers(module: nn.Module) -> None:
    """Pack the linear layers of a tower's blocks, where the CPU has products in their dtype."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    for block in module.modules():
        if isinstance(block, ResidualAttentionBlock):
            for part in (block.attn, block.mlp):
                for name, layer in part.named_children():
                    if isinstance(layer, nn.Linear) and layer.weight.dtype == torch.bfloat16:
                        setattr(part, name, PackedLinear(layer))
