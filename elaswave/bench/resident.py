"""How much memory this process takes; what several share is counted once, a part for each of them."""

from pathlib import Path

_PROC = Path("/proc/self")
_FORGET_PEAK = "5"  # see clear_refs in https://docs.kernel.org/filesystems/proc.html
_COUNTED = ("Pss_Anon", "Pss_Shmem")


def now_bytes() -> int:
    """Memory of this process, without pages of files, such as the text of libraries."""
    told = _values(_PROC / "smaps_rollup")
    return sum(told[name] for name in _COUNTED)


def forget_peak() -> None:
    """Let the peak begin anew."""
    (_PROC / "clear_refs").write_text(_FORGET_PEAK)


def peak_bytes() -> int:
    """The most that it was since `forget_peak`; what came and went in between was this process's alone."""
    status = _values(_PROC / "status")
    return now_bytes() + max(0, status["VmHWM"] - status["VmRSS"])


def _values(path: Path) -> dict[str, int]:
    """Every line `Name: n kB`, in bytes."""
    found = {}
    for line in path.read_text().splitlines():
        words = line.split()
        if len(words) == 3 and words[2] == "kB":
            found[words[0].rstrip(":")] = int(words[1]) << 10
    return found
