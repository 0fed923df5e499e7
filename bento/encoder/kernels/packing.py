"""Layers whose weights are packed for the 16-bit instructions of a CPU."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import nn

from bento.encoder.kernels.attention import LastBlock


class PackedLinear(nn.Module):
    """Computes the same as `nn.Linear`, optionally followed by `nn.GELU` or `nn.SiLU`.

    `nn.Linear` packs its weights in every call. This layer packs them once, as `torch.compile` does
    for frozen weights. The fused activation saves writing the product to memory and reading it
    again.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        activation: nn.GELU | nn.SiLU | None = None,
    ) -> None:
        super().__init__()
        self.bias = bias
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        match activation:
            case nn.GELU():
                self._then = ("gelu", activation.approximate)
            case nn.SiLU():
                self._then = ("swish", "")
            case None:
                self._then = ("none", "")

    def forward(self, x: torch.Tensor) -> Any:
        name, algorithm = self._then
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, name, [], algorithm)


class PackedPatches(nn.Module):
    """Computes the same as an `nn.Conv2d` over non-overlapping patches, as one matrix product."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.side = conv.kernel_size[0]
        self.linear = PackedLinear(conv.weight.flatten(1), conv.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, channels, height, width = x.shape
        side, rows, columns = self.side, height // self.side, width // self.side
        x = x[:, :, : rows * side, : columns * side].reshape(n, channels, rows, side, columns, side)
        patches = x.permute(0, 2, 4, 1, 3, 5).reshape(n, rows * columns, channels * side * side)
        embedded: torch.Tensor = self.linear(patches)  # (n, rows * columns, width)
        return embedded.transpose(1, 2).reshape(n, -1, rows, columns)


def pack_weights(module: nn.Module) -> None:
    """Pack the bfloat16 weights of a tower's patches and blocks, if the CPU supports it."""
    mkldnn = torch.ops.mkldnn
    if not (hasattr(mkldnn, "_is_mkldnn_bf16_supported") and mkldnn._is_mkldnn_bf16_supported()):
        return
    for part in module.modules():
        if isinstance(part, VisionTransformer) and _embeds_patches(part.conv1):
            part.conv1 = PackedPatches(part.conv1)
        elif isinstance(part, ResidualAttentionBlock | LastBlock):
            if type(part.mlp.gelu) in (nn.GELU, nn.SiLU) and _is_packable(part.mlp.c_fc):
                layer = part.mlp.c_fc
                part.mlp.c_fc = PackedLinear(layer.weight, layer.bias, part.mlp.gelu)
                part.mlp.gelu = nn.Identity()
            for layers in (part.attn, part.mlp):
                for name, layer in layers.named_children():
                    if isinstance(layer, nn.Linear) and _is_packable(layer):
                        setattr(layers, name, PackedLinear(layer.weight, layer.bias))


def _is_packable(layer: nn.Linear | nn.Conv2d) -> bool:
    return layer.weight.dtype == torch.bfloat16


def _embeds_patches(conv: nn.Module) -> bool:
    return (
        isinstance(conv, nn.Conv2d)
        and _is_packable(conv)
        and conv.kernel_size == conv.stride == (conv.kernel_size[0],) * 2
        and (conv.padding, conv.dilation, conv.groups) == ((0, 0), (1, 1), 1)
    )
