"""The recovery table fits its terminal, and the one line tells only what took time."""

from support.events import Kill, MadeUpRun

from elaswave.report.history import history_build
from elaswave.report.mttr import recoveries
from elaswave.report.text import HEADER, recovery_line, recovery_table

FOUND = recoveries(history_build(MadeUpRun(kills=[Kill(rank=2, step=8), Kill(rank=1, step=14)]).events))


def test_a_table_that_does_not_fit_is_turned():
    wide = recovery_table(FOUND).splitlines()
    assert recovery_table(FOUND, 200).splitlines() == wide
    assert len(wide) == 2 + len(FOUND)
    narrow = recovery_table(FOUND, 60).splitlines()
    assert max(map(len, narrow)) <= 60 < max(map(len, wide))
    assert len(narrow) == len(HEADER) + 1
    assert narrow[-1].split() == ["MTTR", "ms", *(line.split()[-1] for line in wide[2:])]


def test_no_loss_is_one_sentence():
    assert recovery_table(()) == "no worker was lost"


def test_the_line_leaves_out_what_took_no_time():
    line = recovery_line(FOUND[0])
    assert line.startswith("back in 213 ms after the loss of rank 2 (kill): detect ")
    assert " 0 " not in line.partition(": ")[2]
    assert line.endswith(" ms")
