"""Low-rank adapters, and the penalty that keeps what they add away from weights that matter.

Papers: LoRA, https://arxiv.org/abs/2106.09685; EWC with LoRA as in Language Models Meet World Models,
https://arxiv.org/abs/2305.10626: the loss is CE + strength * sum of importance * (scale B A)^2. The importance is
that of the merged weights; because they are the frozen ones plus scale B A, no copy of the frozen ones is needed.
"""

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional


class LowRank(nn.Module):
    """A linear layer that is frozen, plus a trained product of two thin matrices, which begins at zero.

    Attributes:
        base: the frozen layer, (out, in).
        down: A, (rank, in).
        up: B, (out, rank).
        scale: alpha / rank.
    """

    def __init__(
        self, base: nn.Linear, rank: int, alpha: float, dropout: float = 0.0, generator: torch.Generator | None = None
    ) -> None:
        """
        Args:
            base: the layer to adapt; its parameters are frozen.
            rank: inner width.
            alpha: the product is multiplied by alpha / rank.
            dropout: of the adapter's input, from 0 to below 1.
            generator: draws A; None: torch's own.

        Raises:
            ValueError: the rank or the dropout is out of its range.
        """
        super().__init__()
        if not 1 <= rank <= min(base.weight.shape):
            raise ValueError(
                f"rank = {rank}: use 1 to {min(base.weight.shape)} for a layer of {tuple(base.weight.shape)}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout = {dropout}: must be from 0 to below 1")
        self.base, self.scale, self.dropout = base.requires_grad_(False), alpha / rank, dropout
        like = base.weight
        self.down = nn.Parameter(torch.empty(rank, like.shape[1], dtype=like.dtype, device=like.device))
        nn.init.normal_(self.down, std=1 / math.sqrt(like.shape[1]), generator=generator)
        self.up = nn.Parameter(torch.zeros(like.shape[0], rank, dtype=like.dtype, device=like.device))

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        thin = functional.dropout(x, self.dropout, self.training) @ self.down.T
        return self.base(x) + self.scale * (thin @ self.up.T)

    def change(self) -> Tensor:
        """(out, in): what the adapter adds to the weight."""
        return self.scale * (self.up @ self.down)


def adapt(
    model: nn.Module,
    targets: Collection[str],
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> dict[str, LowRank]:
    """Freeze a model and put adapters into it.

    Args:
        model: changed in place.
        targets: last parts of the names of the linear layers to adapt, such as "attend".
        rank: of all adapters.
        alpha: of all adapters.
        dropout: of all adapters.
        generator: draws their A in the order of their names in the model.

    Returns:
        name of the layer -> its adapter.

    Raises:
        ValueError: a target names no linear layer.
    """
    model.requires_grad_(False)
    chosen = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in targets
    }
    if missing := sorted(set(targets) - {name.rpartition(".")[2] for name in chosen}):
        raise ValueError(f"targets: no linear layer is called {' or '.join(missing)}")
    adapters = {}
    for name, layer in chosen.items():
        adapters[name] = LowRank(layer, rank, alpha, dropout, generator)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, adapters[name])
    return adapters


def penalty(adapters: Mapping[str, LowRank], fisher: Mapping[str, Tensor], strength: float) -> Tensor:
    """() strength * sum over adapters of importance * (scale B A)^2.

    This is the penalty of `ewc.EWC` on merged weights, without its half.

    Args:
        adapters: as `adapt` returns them.
        fisher: name of a weight, before it was adapted -> importance, (out, in); others are not looked at.
        strength: lambda.
    """
    parts = [(fisher[f"{name}.weight"] * adapter.change().square()).sum() for name, adapter in adapters.items()]
    return strength * torch.stack(parts).sum()


@torch.no_grad()
def merge(model: nn.Module, adapters: Mapping[str, LowRank]) -> None:
    """Put plain linear layers in place of the adapters, with the weights that both made up together."""
    for name, adapter in adapters.items():
        adapter.base.weight += adapter.change()
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, adapter.base)
