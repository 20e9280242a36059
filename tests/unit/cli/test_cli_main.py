"""The command line: dispatch, help, and errors as one line instead of a traceback."""

import subprocess
import sys
import types

import pytest

from elaswave.cli import main as cli
from elaswave.errors import ConfigError, LaunchError


def install(monkeypatch: pytest.MonkeyPatch, run: object) -> None:
    module = types.ModuleType("elaswave.cli.report")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "elaswave.cli.report", module)
    monkeypatch.setattr(cli, "_installed", lambda name: name in ("report", "launch"))


def test_help_names_every_installed_command(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "launch" in shown
    assert "torchrun --rdzv-backend=elaswave" in shown


def test_no_command_shows_the_help_and_fails(capsys: pytest.CaptureFixture[str]):
    assert cli.main([]) == 2
    assert "commands:" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("elaswave ")


def test_unknown_command_names_the_known_ones(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["lunch"]) == 2
    assert "unknown command 'lunch'; use one of launch" in capsys.readouterr().err


def test_the_rest_of_the_line_goes_to_the_command(monkeypatch: pytest.MonkeyPatch):
    seen: list[list[str]] = []
    install(monkeypatch, lambda argv: seen.append(argv) or 3)
    assert cli.main(["report", "x", "--lose", "3"]) == 3
    assert seen == [["x", "--lose", "3"]]


@pytest.mark.parametrize(
    ("error", "status"),
    [(ConfigError("a.b", 3, "use 4"), 2), (LaunchError("no room"), 1), (KeyboardInterrupt(), 130)],
)
def test_our_errors_become_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, status: int
):
    def run(argv: list[str]) -> int:
        raise error

    install(monkeypatch, run)
    assert cli.main(["report"]) == status
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert str(error) in err


def test_starts_without_torch():
    code = "import sys; from elaswave.cli.main import main; main(['--help']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30, stdout=subprocess.DEVNULL)


def test_a_reader_that_went_away_is_no_traceback():
    code = "import sys; from elaswave.cli.main import main; sys.stdin.read(); sys.exit(main(['--help']))"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.close()
    child.stdout = None
    _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (1, b"")
