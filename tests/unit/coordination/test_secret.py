"""The job's secret: where it comes from, and who may read it."""

import stat
import threading

import pytest

from elaswave.coordination.secret import FILE_VARIABLE, VARIABLE, job_secret
from elaswave.errors import LaunchError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv(FILE_VARIABLE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_it_is_made_once_and_only_its_owner_can_read_it(home):
    first = job_secret("job")
    path = home / ".config" / "elaswave" / "secret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert job_secret("job") == first
    assert len(first) == 32
    assert list(path.parent.iterdir()) == [path]


def test_each_job_has_its_own():
    assert job_secret("a") != job_secret("b")


def test_the_environment_wins(home, monkeypatch):
    own = job_secret("a")
    monkeypatch.setenv(VARIABLE, "x" * 16)
    assert job_secret("a") != own


def test_a_file_can_be_named(home, monkeypatch):
    path = home / "s"
    path.write_text("x" * 32)
    path.chmod(0o600)
    monkeypatch.setenv(FILE_VARIABLE, str(path))
    from_file = job_secret("a")
    monkeypatch.setenv(VARIABLE, "x" * 32)
    assert job_secret("a") == from_file


@pytest.mark.parametrize(
    ("content", "mode", "complaint"),
    [("x" * 32, 0o644, "chmod 600"), ("short", 0o600, "at least 16"), (None, 0, "cannot read")],
)
def test_a_bad_file_is_an_error_with_a_remedy(home, monkeypatch, content, mode, complaint):
    path = home / "s"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    monkeypatch.setenv(FILE_VARIABLE, str(path))
    with pytest.raises(LaunchError, match=complaint):
        job_secret("a")


def test_many_that_start_at_once_agree():
    found = []
    threads = [threading.Thread(target=lambda: found.append(job_secret("a"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 8
    assert len(set(found)) == 1
