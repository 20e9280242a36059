"""One task after another: what optimizers and elastic weights keep of earlier tasks, and what it costs in state.

Settings are tuned on other seeds than they are judged on. What a paper claims is reported as it comes out, with
confidence intervals; differences are taken seed by seed.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from elaswave.bench.learning import language, page
from elaswave.bench.learning.contenders import ADAM, CLASSP_FREE, EWC_SEPARATE, FORGETFUL, SGD, Setting
from elaswave.bench.learning.judge import Judged, judge
from elaswave.bench.result import Metrics, Result, Target, at_least, at_most, spread
from elaswave.continual.tasks import STREAMS
from elaswave.errors import ConfigError

FIRST_SEED = 100
SEEDS_MIN = 3
TWO_DOMAINS, PERMUTED = "two domains", "permuted digits"
STREAM_NAMES = (TWO_DOMAINS, PERMUTED, "split digits", "split digits, by domain", "text")
LANGUAGE = "language"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    choices = (*STREAM_NAMES, LANGUAGE)
    parser.add_argument("--streams", nargs="+", default=list(choices), metavar="NAME", help="; ".join(choices))
    parser.add_argument("--seeds", type=int, default=10, help=f"judged seeds, from {FIRST_SEED} on (default 10)")
    parser.add_argument("--language-seeds", type=int, default=3, help="seeds of the language models (default 3)")
    parser.add_argument("--draws", type=int, default=0, help="tune anew: so many settings beside the known (default 0)")
    parser.add_argument("--page", type=Path, help="write the matrices of accuracies as an HTML page")


def run(arguments: argparse.Namespace) -> Result:
    """Train every contender on every stream.

    Raises:
        ConfigError: an argument is wrong, or scikit-learn is not installed.
    """
    _check(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seeds = range(FIRST_SEED, FIRST_SEED + arguments.seeds)
        chosen = [name for name in STREAM_NAMES if name in arguments.streams]
        judged = {name: judge(name, STREAMS[name], seeds, arguments.draws) for name in chosen}
        found = []
        if LANGUAGE in arguments.streams:
            found = [language.run(seed, language.Scale()) for seed in range(arguments.language_seeds)]
    finally:
        torch.set_num_threads(threads)
    if arguments.page:
        arguments.page.write_text(page.render({name: of.mean_matrices() for name, of in judged.items()}))
    contenders: dict[str, Metrics] = {}
    for name, of in judged.items():
        contenders |= {f"{name}: {contender}": metrics for contender, metrics in of.metrics().items()}
    if found:
        contenders |= _language_metrics(found)
    return Result(
        bench="continual",
        config={
            "judged_seeds": list(seeds),
            "settings": {name: _plain(of.settings) for name, of in judged.items()},
            "intervals": {name: of.intervals() for name, of in judged.items()},
            "threads": 1,
            "cores": os.cpu_count(),
        },
        contenders=contenders,
        targets=(*(t for name, of in judged.items() for t in targets_of(name, of)), *language_targets(found)),
        notes=(
            "accuracy: mean over tasks at the end; state_multiple: numbers kept per weight besides the weight;"
            " separate elastic weights as the paper keeps them (collapsed into one spring they need 2)",
            *(line for of in judged.values() for line in of.lines()),
        ),
    )


def targets_of(name: str, judged: Judged) -> list[Target]:
    """What is promised of a stream."""

    def ahead(other: str) -> float:
        return 100 * judged.difference(CLASSP_FREE, other).mean

    accuracy = judged.accuracy(CLASSP_FREE).mean
    if name == TWO_DOMAINS:
        return [
            at_least(f"{name}: accuracy of CLASSP", accuracy, 0.80),
            at_least(f"{name}: CLASSP ahead of SGD, points", ahead(SGD), 6),
            at_least(f"{name}: what losing CLASSP's sums costs, points", ahead(FORGETFUL), 15),
        ]
    if name == PERMUTED:
        state = judged.state_multiple(CLASSP_FREE) / judged.state_multiple(EWC_SEPARATE)
        return [
            at_least(f"{name}: accuracy of CLASSP", accuracy, 0.65),
            at_least(f"{name}: CLASSP ahead of SGD, points", ahead(SGD), 10),
            at_least(f"{name}: CLASSP ahead of Adam, points", ahead(ADAM), 8),
            at_least(f"{name}: CLASSP ahead of separate EWC, points", ahead(EWC_SEPARATE), -2),
            at_most(f"{name}: CLASSP's state over separate EWC's", state, 1 / 8),
            at_least(f"{name}: what losing CLASSP's sums costs, points", ahead(FORGETFUL), 15),
        ]
    return []


def language_targets(found: Sequence[Mapping[str, Mapping[str, float]]]) -> list[Target]:
    """What is promised of language models, for the worst seed."""
    if not found:
        return []
    old = "old_perplexity"
    base = max(of["EWC-LoRA"][old] / of["base"][old] for of in found)
    plain = max(of["EWC-LoRA"][old] / of["LoRA"][old] for of in found)
    return [
        at_most("EWC-LoRA: old perplexity over the base model's, worst seed", base, 2),
        at_most("EWC-LoRA: old perplexity over plain LoRA's, worst seed", plain, 0.2),
        at_least("EWC-LoRA: new accuracy, worst seed", min(of["EWC-LoRA"]["new_accuracy"] for of in found), 0.80),
    ]


def _language_metrics(found: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Metrics]:
    return {
        f"{LANGUAGE}: {name}": {metric: spread([of[name][metric] for of in found]) for metric in metrics}
        for name, metrics in found[0].items()
    }


def _plain(settings: Mapping[str, Setting]) -> dict[str, dict[str, Any]]:
    return {name: asdict(setting) for name, setting in settings.items()}


def _check(arguments: argparse.Namespace) -> None:
    for name in arguments.streams:
        if name not in (*STREAM_NAMES, LANGUAGE):
            raise ConfigError("--streams", name, f"use some of {', '.join((*STREAM_NAMES, LANGUAGE))}")
    if arguments.seeds < SEEDS_MIN:
        raise ConfigError("--seeds", arguments.seeds, f"give at least {SEEDS_MIN}, for an interval")
    if arguments.language_seeds < 1:
        raise ConfigError("--language-seeds", arguments.language_seeds, "give at least 1")
    if arguments.draws < 0:
        raise ConfigError("--draws", arguments.draws, "give 0 to take the known settings, or more to tune anew")
    if arguments.page and not arguments.page.parent.is_dir():
        raise ConfigError("--page", str(arguments.page), "its folder does not exist; make it")
