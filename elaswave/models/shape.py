"""What the built-in models are made of, as numbers and without torch: costs of layers, elements, shared weights.

The same numbers as `pipeline.layers.Layers(model).profile()` finds by building the layers.
"""

import math
from dataclasses import dataclass

from elaswave.config import Model
from elaswave.errors import ConfigError

SMALL_SHARE = 0.02
"""What a layer costs beside its products, as a share of the largest estimate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model of L layers.

    Attributes:
        costs: of the forward of each layer.
        unit_elements: elements that belong to each layer alone, and behind them those of each shared weight.
        users: per unit the layers that use it.
    """

    costs: tuple[float, ...]
    unit_elements: tuple[int, ...]
    users: tuple[tuple[int, ...], ...]

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.costs)


def shape_of(config: Model) -> Shape | None:
    """The shape of a built-in model; None for one that only its own code knows.

    Raises:
        ConfigError: there is no model of these sizes.
    """
    match config.name:
        case "gpt":
            return _transformer(config, tied=config.tied)
        case "encoder":
            return _transformer(config, tied=True)
        case "mixer":
            return _mixer(config)
    return None


def check_image(config: Model) -> None:
    """Raise ConfigError when an image of `sequence_length` pixels is no square of patches."""
    side = math.isqrt(config.sequence_length)
    if side**2 != config.sequence_length:
        raise ConfigError("model.sequence_length", config.sequence_length, "pixels of a square image, such as 64")
    if side % config.patch:
        raise ConfigError("model.patch", config.patch, f"must divide the side of the image, {side} pixels")


def _transformer(config: Model, *, tied: bool) -> Shape:
    """Embedding, blocks, head; a cost is the elements of the matrices that a layer multiplies with."""
    width, tokens = config.width, config.vocabulary * config.width
    matrices = 12 * width**2
    products = [0, *[matrices] * config.layers, tokens]
    small = SMALL_SHARE * max(products)
    sizes = [tokens + config.sequence_length * width, *[matrices + 13 * width] * config.layers, 2 * width + tokens]
    users: list[tuple[int, ...]] = [(layer,) for layer in range(len(sizes))]
    if tied:
        sizes = [sizes[0] - tokens, *sizes[1:-1], sizes[-1] - tokens, tokens]
        users.append((0, config.layers + 1))
    return Shape(costs=tuple(product + small for product in products), unit_elements=tuple(sizes), users=tuple(users))


def _mixer(config: Model) -> Shape:
    """Patches, mixing blocks, mean pool; costs are multiplications per image."""
    check_image(config)
    width, patch, patches = config.width, config.patch**2, config.sequence_length // config.patch**2
    mixing = 4 * width * patches**2 + 8 * patches * width**2
    costs = [config.sequence_length * width, *[mixing] * config.layers, width * (config.classes + patches)]
    over_patches, over_channels = 4 * patches**2 + 3 * patches, 8 * width**2 + 5 * width
    block = 4 * width + over_patches + over_channels
    sizes = [patch * width + width, *[block] * config.layers, 2 * width + config.classes * (width + 1)]
    return Shape(
        costs=tuple(map(float, costs)),
        unit_elements=tuple(sizes),
        users=tuple((layer,) for layer in range(len(sizes))),
    )
