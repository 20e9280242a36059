"""Warm processes and reference runs that many tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.torchrun_job import CONFIG, TrainJob
from support.training import MiniJob, Zygote, digests, make_zygote


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    process = make_zygote()
    yield process
    process.close()


@pytest.fixture(scope="session")
def reference(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Digest of every step of the unharmed run of one worker."""
    with MiniJob(zygote, tmp_path_factory.mktemp("reference") / "one", workers=1) as job:
        return digests(job.wait())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture(scope="session")
def unharmed(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Digest of every step of one worker that nobody harmed."""
    with MiniJob(zygote, tmp_path_factory.mktemp("unharmed") / "one", workers=1, config=CONFIG) as job:
        return digests(job.wait())


@pytest.fixture
def job(tmp_path: Path) -> Iterator[TrainJob]:
    training = TrainJob(tmp_path)
    yield training
    training.close()
