"""Gradients by parameter, as a test wants to look at them."""

import torch


class Found(dict[torch.Tensor, torch.Tensor]):
    """A sink of gradients that adds up what belongs to one parameter."""

    def add(self, parameter: torch.Tensor, gradient: torch.Tensor) -> None:
        self[parameter] = self[parameter] + gradient if parameter in self else gradient

    def add_product(self, parameter: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> None:
        self.add(parameter, (rows.t() @ columns).to(parameter.dtype))
