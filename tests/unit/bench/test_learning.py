"""The bench on streams of tasks: lanes learn what each would alone, settings are known or drawn, targets are told."""

import argparse
import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from elaswave.bench import continual
from elaswave.bench.learning import contenders, judge, language, page, tuning
from elaswave.bench.learning.contenders import CLASSP_FREE, DRAWS, EWC_SEPARATE, FORGETFUL, Setting, state_multiple
from elaswave.bench.learning.lanes import train
from elaswave.bench.learning.settings import KNOWN
from elaswave.bench.result import as_json
from elaswave.continual.tasks import STREAMS, Stream, permuted_digits
from elaswave.errors import ConfigError

SMALL = Stream(make=partial(permuted_digits, tasks=2), epochs=1)
SETTINGS = {
    "classp": Setting(optimizer="classp", lr=0.3, eps=0.2, free_first=True),
    "ewc": Setting(optimizer="sgd", lr=0.1, strength=10.0),
    "online": Setting(optimizer="adam", lr=0.003, strength=10.0, online=True),
}


@pytest.fixture(autouse=True)
def _scikit_learn():
    pytest.importorskip("sklearn")


@pytest.mark.parametrize("name", SETTINGS)
def test_a_lane_learns_what_it_would_alone(name):
    together, alone = train(SMALL, SETTINGS[name], [5, 6]), train(SMALL, SETTINGS[name], [6])
    for ours, theirs in zip(together[1].matrix, alone[0].matrix, strict=True):
        assert ours == pytest.approx(theirs, abs=0.01)  # sums of matrix products may differ in their last bits
    assert together[0].matrix != together[1].matrix
    assert together[1].matrix[0][0] > together[1].untrained[0] + 0.2


def test_a_run_is_a_function_of_setting_and_seed():
    assert train(SMALL, SETTINGS["ewc"], [5]) == train(SMALL, SETTINGS["ewc"], [5])


def test_a_lost_state_changes_what_comes_after_the_switch_alone():
    kept = train(SMALL, SETTINGS["classp"], [5])[0].matrix
    lost = train(SMALL, replace(SETTINGS["classp"], forgetful=True), [5])[0].matrix
    assert kept[0] == lost[0]
    assert kept[1] != lost[1]


def test_state_is_counted_as_papers_keep_it():
    assert state_multiple(SETTINGS["classp"], 5) == 1
    assert state_multiple(SETTINGS["ewc"], 5) == 8
    assert state_multiple(SETTINGS["online"], 5) == 4


def test_settings_are_drawn_by_number_and_known_for_every_stream():
    for contender in DRAWS:
        assert tuning.candidate(contender, 1) == tuning.candidate(contender, 1) != tuning.candidate(contender, 2)
    assert set(KNOWN) == set(STREAMS) == set(continual.STREAM_NAMES)
    assert all(list(settings) == list(DRAWS) for settings in KNOWN.values())
    for settings in KNOWN.values():
        assert settings[contenders.CLASSP_2].power == 2
        assert settings[CLASSP_FREE].threshold == 0
        assert settings[contenders.EWC_ONLINE].online
    assert not set(tuning.TUNING_SEEDS) & set(range(continual.FIRST_SEED, continual.FIRST_SEED + 1000))


def test_tuning_takes_the_best(monkeypatch):
    values = {0.5: 0.2, tuning.candidate("SGD", 0).lr: 0.1, tuning.candidate("SGD", 1).lr: 0.9}
    monkeypatch.setattr(tuning, "mean_accuracy", lambda stream, setting: values[setting.lr])
    known = Setting(optimizer="sgd", lr=0.5)
    assert tuning.best(SMALL, "SGD", known, 1) is known
    assert tuning.best(SMALL, "SGD", known, 2) == tuning.candidate("SGD", 1)


def test_the_bench_tells_all_figures_and_targets(monkeypatch, tmp_path):
    chosen = {CLASSP_FREE: SETTINGS["classp"], EWC_SEPARATE: SETTINGS["ewc"]}
    chosen |= {"SGD": Setting(optimizer="sgd", lr=0.1), "Adam": Setting(optimizer="adam", lr=1e-3)}
    monkeypatch.setattr(judge, "KNOWN", {"permuted digits": chosen})
    monkeypatch.setattr(continual, "STREAMS", {"permuted digits": SMALL})
    parser = argparse.ArgumentParser()
    continual.add_arguments(parser)
    words = ["--streams", "permuted digits", "--seeds", "3", "--page", str(tmp_path / "page.html")]
    result = json.loads(as_json(continual.run(parser.parse_args(words)), {}))
    assert result["contenders"][f"permuted digits: {FORGETFUL}"]["accuracy"]["n"] == 3
    assert result["contenders"][f"permuted digits: {EWC_SEPARATE}"]["state_multiple"]["median"] == 2
    assert {target["name"].partition(": ")[0] for target in result["targets"]} == {"permuted digits"}
    assert len(result["targets"]) == 6
    interval = result["config"]["intervals"]["permuted digits"]["SGD"]
    assert interval["half_width"] > 0
    assert result["config"]["judged_seeds"] == [100, 101, 102]
    html = (tmp_path / "page.html").read_text()
    assert html.count("<figure>") == 5
    assert html.count("<td") == 5 * 4


def test_the_page_escapes_names_and_darkens_what_is_right():
    html = page.render({"a<b": {"x&y": [[1.0, 0.0]]}})
    assert "a&lt;b" in html
    assert "x&amp;y" in html
    assert html.index("35%") < html.index("100%)")


@pytest.mark.parametrize(
    "words",
    [
        ["--streams", "nothing"],
        ["--seeds", "2"],
        ["--language-seeds", "0"],
        ["--draws", "-1"],
        ["--page", "no/where.x"],
    ],
)
def test_the_bench_refuses_what_it_cannot_measure(words):
    parser = argparse.ArgumentParser()
    continual.add_arguments(parser)
    with pytest.raises(ConfigError, match=words[0]):
        continual.run(parser.parse_args(words))


TINY = language.Scale(
    width=16,
    heads=2,
    layers=1,
    rank=2,
    pretraining_steps=30,
    adaptation_steps=30,
    batch=16,
    fisher_samples=8,
    test_samples=32,
)


def test_language_models_of_a_tiny_size(monkeypatch):
    monkeypatch.setattr(language, "EWC_STRENGTH", 1e5)  # at this size only very stiff springs show
    found = language.run(0, TINY)
    assert list(found) == ["base", "LoRA", "EWC-LoRA", "all weights"]
    assert found == language.run(0, TINY)
    moved = {name: abs(of["old_perplexity"] / found["base"]["old_perplexity"] - 1) for name, of in found.items()}
    assert moved["EWC-LoRA"] < 0.3 * moved["LoRA"]
    targets = continual.language_targets([found])
    assert [target.goal for target in targets] == ["<= 2", "<= 0.2", ">= 0.8"]


def test_sources_are_what_they_say():
    tokens, weights = language.Sources(0).new(20)
    counts = (tokens[:, :10] == tokens[:, 11:12]).sum(1)
    assert torch.equal(tokens[:, 13], language.FIRST_NUMBER + counts.clamp(max=language.MOST))
    assert weights.sum(1).tolist() == [1.0] * 20
    assert language.Sources(0).old(4)[0].max() < language.CHAIN_TOKENS


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_adapters_that_are_held_back_keep_the_old_source_and_learn_the_new_one(seed):
    found = language.run(seed, language.Scale())
    assert found["EWC-LoRA"]["old_perplexity"] <= 2 * found["base"]["old_perplexity"]
    assert found["EWC-LoRA"]["old_perplexity"] <= found["LoRA"]["old_perplexity"] / 5
    assert found["EWC-LoRA"]["new_accuracy"] >= 0.80
