"""The README's tree of files, made from the first sentence of each; run as a program it updates the README."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- tree: begin -->\n", "<!-- tree: end -->"
WIDTH = 118
NAME = 24
PACKAGES = {
    "": "the front door: the loop, the settings, and the words that all parts share",
    "cli": "what a person types",
    "bench": "one file per claim of this page, all contenders in one run",
    "bench/learning": "contenders that learn one task after another",
    "bench/rivals": "other trainers, doing the same work",
    "faults": "HURT: kill, freeze, flip bits, at an exact point or from outside",
    "runtime": "RECOVER: the one place where all parts meet",
    "telemetry": "events out: files, terminal",
    "report": "events in: tables, charts, the verdict (pure)",
    "checkpoint": "the state on disk",
    "snapshot": "REMEMBER: every shard also on neighbours",
    "zero": "SHARD: optimizer state, cut and cut anew",
    "pipeline": "RUN: layers, forward and backward",
    "data": "which samples a micro-batch has",
    "dvfs": "clocks of devices: set, and always given back",
    "communicator": "RELINK: links that stay, groups that are edited",
    "coordination": "AGREE: who is in, who has died, who decides; torchrun's plug-in",
    "simulator": "IMAGINE: plans under a virtual clock (pure)",
    "baselines": "other systems' decisions, with the planner's signature (pure)",
    "planner": "DECIDE: who computes what (pure)",
    "models": "what is trained; knows nothing of us",
    "optim": "optimizers that remember; they know nothing of us",
    "continual": "learning one task after another: tasks, penalties, metrics; knows nothing of us",
}


def phrase(path: Path, width: int) -> str:
    """The first sentence of a file, up to the last comma or colon that fits."""
    text = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n\n")[0].replace("\n", " ")
    text = text.partition(". ")[0].rstrip(".")
    if text.startswith("`elaswave"):
        text = text.partition(": ")[2] or text
    if len(text) <= width:
        return text
    ends = [i for i, letter in enumerate(text[: width + 1]) if letter in ",;:("]
    return text[: ends[-1] if ends else text.rindex(" ", 0, width)].rstrip(" ,;:(")


def render() -> str:
    """The whole tree as a block of Markdown."""
    lines = []
    for package, what in PACKAGES.items():
        folder = ROOT / "elaswave" / package
        lines.append(f"{'elaswave/' + package + ('/' if package else ''):<{NAME + 2}} {what}")
        files = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
        lines += [f"  {path.name:<{NAME}} {phrase(path, WIDTH - NAME - 3)}" for path in files]
    return "```\n" + "\n".join(lines) + "\n```\n"


def in_readme() -> str:
    """The tree as the README has it."""
    return (ROOT / "README.md").read_text().partition(BEGIN)[2].partition(END)[0]


def packages() -> set[str]:
    """Every package there is, as `PACKAGES` writes them."""
    base = ROOT / "elaswave"
    return {str(path.parent.relative_to(base)).replace(".", "") for path in base.rglob("*.py")}


def main() -> None:
    before, _, rest = (ROOT / "README.md").read_text().partition(BEGIN)
    (ROOT / "README.md").write_text(before + BEGIN + render() + END + rest.partition(END)[2])


if __name__ == "__main__":
    sys.exit(main())
