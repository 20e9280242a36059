"""Benches refuse what they cannot measure, before anything is started."""

import argparse

import pytest

from elaswave.bench import communicator, consistency, mttr, planner, snapshot
from elaswave.bench.recovery_time import groups_of, without
from elaswave.bench.rivals.jobs import as_toml
from elaswave.cli.bench import run
from elaswave.config import Config, load
from elaswave.errors import ConfigError


def parse(bench: object, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(words)


def test_a_number_of_ranks_without_a_grid_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--ranks = 5: use some of 4, 8, 16, 32"):
        communicator.run(parse(communicator, "--ranks", "4", "5"))


@pytest.mark.parametrize("words", [("--workers", "1"), ("--checkpoint-steps", "0"), ("--config", "nowhere.toml")])
def test_mttr_refuses_what_it_cannot_measure(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=words[0]):
        mttr.run(parse(mttr, *words, "--contenders", "elaswave"))  # whose parts are installed everywhere


def test_snapshot_needs_two_neighbours() -> None:
    with pytest.raises(ConfigError, match="--workers"):
        snapshot.run(parse(snapshot, "--workers", "2"))


def test_consistency_needs_a_run() -> None:
    with pytest.raises(ConfigError, match="--runs"):
        consistency.run(parse(consistency, "--runs", "0"))


def test_the_planner_is_measured_at_least_once() -> None:
    with pytest.raises(ConfigError, match="--repetitions"):
        planner.run(parse(planner, "--repetitions", "0"))


def test_an_unknown_bench_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["nothing"])
    assert ended.value.code == 2
    assert "communicator" in capsys.readouterr().err


def test_the_config_of_the_rivals_is_the_config_of_the_launch(tmp_path: object) -> None:
    config = mttr.workload(None)
    path = tmp_path / "config.toml"
    path.write_text(as_toml(config))
    assert load(path) == config
    assert load(path) != Config()


def test_snapshot_jobs_differ_in_their_copies_alone() -> None:
    jobs = snapshot.contenders(Config())
    assert len(jobs) == 5
    assert {(job.snapshot.copies, str(job.snapshot.mode)) for job in jobs.values()} == {
        (0, "state"),
        (1, "state"),
        (2, "state"),
        (1, "gradient"),
        (2, "gradient"),
    }


@pytest.mark.parametrize("size", [4, 8, 16, 32])
def test_every_rank_has_a_data_parallel_group(size: int) -> None:
    groups = groups_of(size)
    data = [members for name, members in groups.items() if name.startswith("data")]
    assert sorted(rank for members in data for rank in members) == list(range(size))
    assert all(size - 1 not in members for members in without(groups, size - 1).values())
