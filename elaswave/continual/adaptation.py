"""Losses that move an image generator to another style by words alone, without its images becoming alike.

Paper: https://arxiv.org/abs/2308.10554. All of them look at embeddings only; whose they are is up to the caller.
Moments and relations couple the samples of a batch: with several ranks, embeddings must be gathered with their gradient
first, since a mean of the ranks' losses is another objective.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional


def variations(target: Tensor, offsets: Tensor) -> Tensor:
    """Semantic variations of a text: points around its embedding, as far from it as it is long.

    Args:
        target: (width,) embedding of the text.
        offsets: (variations, width), of any length but zero.

    Returns:
        (variations, width)
    """
    return target + target.norm() * functional.normalize(offsets, dim=1)


def variation_loss(target: Tensor, offsets: Tensor, diversity: float = 1.0) -> Tensor:
    """() variations should mean what the text means, and differ from one another.

    At its least, offsets are at right angles and lean equally towards the text; `least_variation_loss` is its value.

    Args:
        target: (width,)
        offsets: (variations, width), at least two.
        diversity: weight of the mean absolute cosine between offsets.
    """
    directions = functional.normalize(offsets, dim=1)
    first, second = torch.triu_indices(len(offsets), len(offsets), 1)
    alike = (directions @ directions.T)[first, second].abs().mean()
    meant = 1 - functional.cosine_similarity(variations(target, offsets), target[None], dim=1)
    return meant.mean() + diversity * alike


def least_variation_loss(count: int) -> float:
    """1 - sqrt((1 + 1 / sqrt K) / 2), for any text whose embedding is wider than K."""
    return 1 - math.sqrt((1 + 1 / math.sqrt(count)) / 2)


def direction_loss(images: Tensor, text: Tensor) -> Tensor:
    """() what moments are compared with: each image should move as the text does.

    Args:
        images: (samples, width) changes of embeddings, adapted less source.
        text: (width,) change of the text's embedding.
    """
    return (1 - functional.cosine_similarity(images, text[None], dim=1)).mean()


def moment_loss(images: Tensor, texts: Tensor, covariance: float, *, centred: bool = True) -> Tensor:
    """() changes of images should have the mean direction of changes of texts, and spread as they do.

    As printed, second moments are neither centred nor divided by the numbers of samples: a batch's mean then outweighs
    its spread, and small models collapse. That is `centred=False`; the default departs from the paper there.

    Args:
        images: (samples, width) changes of embeddings of all samples of a step.
        texts: (variations + 1, width) changes of the text and its variations.
        covariance: weight of the Frobenius norm of the difference of second moments.
        centred: subtract means, and divide by the numbers of rows.
    """
    mean = 1 - functional.cosine_similarity(images.mean(0), texts.mean(0), dim=0)
    return mean + covariance * (_second_moment(images, centred) - _second_moment(texts, centred)).norm()


def _second_moment(rows: Tensor, centred: bool) -> Tensor:
    if not centred:
        return rows.T @ rows
    rows = rows - rows.mean(0)
    return rows.T @ rows / len(rows)


def relation_loss(source: Tensor, adapted: Tensor) -> Tensor:
    """() images that are alike before should be alike after: mean KL divergence of each image's likeness to all others.

    Args:
        source: (samples, width) embeddings of source images.
        adapted: (samples, width) embeddings of adapted images from the same latents.
    """
    before, after = ((rows @ rows.T).log_softmax(1) for rows in (source, adapted))
    return functional.kl_div(after, before, log_target=True, reduction="batchmean")
