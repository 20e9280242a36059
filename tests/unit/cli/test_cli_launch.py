"""`elaswave launch` refuses what cannot work before it starts anything, and names key, value and remedy."""

import contextlib
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from elaswave.cli import launch
from elaswave.cli.agents import JobSpec, agent_command, share
from elaswave.cli.main import main
from elaswave.config import from_mapping


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(f'[run]\nfolder = "{tmp_path}/runs"\n')
    return path


@pytest.fixture(autouse=True)
def _nothing_is_started(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch, "Agents", None)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--workers", "0"], "--workers = 0: give at least 1"),
        (["--workers", "2", "--agents", "3"], "--agents = 3: give 1 to 2"),
        (["--workers", "2", "--training.stepz", "3"], "training.stepz = '3': unknown key; known here:"),
        (["--workers", "2", "--training.steps"], "--training.steps = '': needs a value"),
        (["--workers", "2", "--elasticity.heartbeat_s", "9"], "elasticity.heartbeat_s"),
        (["--workers", "2", "--data.source", "text", "--data.path", "/nowhere"], "data.path = '/nowhere': no such"),
        (
            ["--workers", "2", "--parallelism.stages", "9"],
            "parallelism.stages = 9: the model has 6 layers; use at most 6",
        ),
        (["--workers", "2", "--checkpoint.resume", "/nowhere"], "checkpoint.resume = '/nowhere': no such folder"),
        (["--workers", "2", "--faults", "/nowhere"], "--faults = '/nowhere': no such file"),
    ],
)
def test_wrong_use_is_one_clear_line(
    config_file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
):
    assert main(["launch", str(config_file), *arguments]) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not (config_file.parent / "runs").exists()


def test_missing_config(capsys: pytest.CaptureFixture[str]):
    assert main(["launch", "/nowhere.toml", "--workers", "2"]) == 2
    assert "--config = '/nowhere.toml': no such file" in capsys.readouterr().err


def test_port_in_use(config_file: Path, capsys: pytest.CaptureFixture[str]):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        assert main(["launch", str(config_file), "--workers", "2", "--port", port]) == 1
    assert f"port {port} of 127.0.0.1 cannot be used" in capsys.readouterr().err


def test_unusable_run_folder(config_file: Path, capsys: pytest.CaptureFixture[str]):
    (config_file.parent / "runs").write_text("in the way")
    assert main(["launch", str(config_file), "--workers", "2"]) == 1
    assert "cannot make a run folder" in capsys.readouterr().err


def test_no_space(config_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch, "space_needed", lambda config: 2**60)
    assert main(["launch", str(config_file), "--workers", "2"]) == 1
    assert "MiB are free" in capsys.readouterr().err


def test_short_token_file(tmp_path: Path):
    tokens = tmp_path / "x.bin"
    tokens.write_bytes(b"\0\0")
    config = from_mapping({"data": {"source": "tokens", "path": str(tokens)}})
    with pytest.raises(ValueError, match="at least 258 bytes"):
        launch.check_corpus(config)


def test_checkpoints_need_space():
    without, with_some = from_mapping({}), from_mapping({"checkpoint": {"every_steps": 10}})
    assert launch.space_needed(with_some) > launch.space_needed(without)


@pytest.mark.parametrize(("workers", "agents", "shares"), [(4, 1, (4,)), (5, 2, (3, 2)), (3, 3, (1, 1, 1))])
def test_workers_are_shared_evenly(workers: int, agents: int, shares: tuple[int, ...]):
    assert share(workers, agents) == shares


def test_agents_are_plain_torchrun():
    job = JobSpec(run_id="r", workers=(2, 1), port=29400, log_dir="logs", command=("elaswave.train", "--config", "c"))
    command = agent_command(job, 1)
    assert "torch.distributed.run" in command
    assert "--nproc-per-node=1" in command
    assert command[-4:] == ["-m", "elaswave.train", "--config", "c"]


def test_help_needs_no_torch():
    code = (
        "import sys\nfrom elaswave.cli.main import main\n"
        "try: main(['launch', '--help'])\nexcept SystemExit: sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30, stdout=subprocess.DEVNULL)
