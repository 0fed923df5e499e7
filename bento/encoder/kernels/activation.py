"""QuickGELU, the activation of all OpenAI weights, computed as SiLU."""

from __future__ import annotations

from typing import Any, Final

from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import nn

_SLOPE: Final = 1.702  # of QuickGELU, x * sigmoid(1.702 * x)


def fold_quick_gelu(module: Any) -> None:
    """Replace QuickGELU in the blocks of a tower by SiLU, and scale the float32 weights around it.

    quick_gelu(x) = silu(1.702 * x) / 1.702, so the outputs stay the same up to rounding. torch runs
    QuickGELU as three kernels and SiLU as one, which it can fuse into the product before it. The
    scaled weights are copies: they are not shared with other processes that map the file.
    """
    for block in module.modules():
        if not isinstance(block, ResidualAttentionBlock):
            continue
        mlp = block.mlp
        if type(mlp.gelu) is QuickGELU:
            mlp.gelu = nn.SiLU(inplace=True)
            mlp.c_fc.weight = _scaled(mlp.c_fc.weight, _SLOPE)
            mlp.c_fc.bias = _scaled(mlp.c_fc.bias, _SLOPE)
            mlp.c_proj.weight = _scaled(mlp.c_proj.weight, 1 / _SLOPE)


def _scaled(weights: nn.Parameter, factor: float) -> nn.Parameter:
    return nn.Parameter(weights.detach() * factor, requires_grad=False)
