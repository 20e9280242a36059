"""The trainer on a host where another torch is installed, as far as the job can tell."""

import sys

import torch

torch.__version__ = "2.0.0"  # type: ignore[assignment]

from elaswave import train  # noqa: E402

if __name__ == "__main__":
    sys.exit(train.main())
