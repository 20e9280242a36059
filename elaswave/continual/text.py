"""Three kinds of text out of the standard library's sources: prose, code and tables, in one small alphabet."""

import ast
import functools
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

SYMBOLS = " abcdefghijklmnopqrstuvwxyz0#()._"
"""All letters are small, all digits are 0; what is not here is a space, and spaces do not follow one another."""
CONTEXT = 6
"""Characters from which the next one is to be told."""
DOMAINS = ("prose", "code", "tables")
_CHARACTERS = 100_000
_TABLES = ("encodings/cp*.py", "encodings/iso8859*.py")


@functools.cache
def domain_text(domain: str) -> str:
    """Text of one domain in the alphabet, up to a bound.

    Raises:
        ValueError: there is no such domain.
    """
    if domain not in DOMAINS:
        raise ValueError(f"domain = {domain!r}: use one of {', '.join(DOMAINS)}")
    parts: list[str] = []
    length = 0
    for source in _sources(domain):
        parts.append(plain(source))
        length += len(parts[-1])
        if length >= _CHARACTERS:
            break
    return re.sub(" +", " ", " ".join(parts))[:_CHARACTERS]


def plain(text: str) -> str:
    """Text in the alphabet."""
    text = re.sub(r"[0-9]", "0", text.lower())
    return re.sub(f"[^{re.escape(SYMBOLS[1:])}]+", " ", text)


def windows(domain: str, count: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Places of a text, drawn without repetition.

    Args:
        domain: one of `DOMAINS`.
        count: number of places.
        generator: draws them.

    Returns:
        (count, CONTEXT * symbols) float32, one-hot, and the next symbols' numbers, (count,) int64.
    """
    symbols = torch.tensor([SYMBOLS.index(letter) for letter in domain_text(domain)])
    starts = torch.from_numpy(generator.choice(len(symbols) - CONTEXT, count, replace=False))
    places = symbols[starts[:, None] + torch.arange(CONTEXT + 1)]  # (count, CONTEXT + 1)
    return functional.one_hot(places[:, :-1], len(SYMBOLS)).flatten(1).float(), places[:, -1]


def _sources(domain: str) -> Iterator[str]:
    library = Path(sysconfig.get_path("stdlib"))
    patterns = _TABLES if domain == "tables" else ("*.py",)
    for path in (path for pattern in patterns for path in sorted(library.glob(pattern))):
        text = path.read_text(encoding="utf-8", errors="replace")
        if domain == "tables":
            yield text
            continue
        tree = ast.parse(text)
        prose = _docstrings(tree)
        yield "\n".join(prose) if domain == "prose" else _code(tree)


def _docstrings(tree: ast.Module) -> list[str]:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    return [text for text in found if text]


def _code(tree: ast.Module) -> str:
    """The program again, without comments and with all texts empty."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            node.value = type(node.value)()
    return ast.unparse(tree)
