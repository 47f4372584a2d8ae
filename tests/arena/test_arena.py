"""The arena: grids, that it goes on and repeats itself, who is told apart from whom, and which faults are named."""

import json
import sys
from dataclasses import asdict
from typing import Annotated

import pytest
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt

from tests.helpers import ROOT, run_python
from trl_dpo_ext import register_loss
from trl_dpo_ext.arena import plan, trial
from trl_dpo_ext.arena import run_arena as runner
from trl_dpo_ext.arena.faults import faults
from trl_dpo_ext.arena.feedback import token_logps
from trl_dpo_ext.arena.grids import SETTINGS, grid_of
from trl_dpo_ext.arena.plan import Trial, code_of, measure_trials, pick_trials, readable_kinds
from trl_dpo_ext.arena.record_file import FILE, append_trial, read_trials
from trl_dpo_ext.arena.run_arena import run_arena
from trl_dpo_ext.arena.standings import standings, verdicts
from trl_dpo_ext.arena.trial import Setting, run_trial
from trl_dpo_ext.cli import main
from trl_dpo_ext.losses import get_loss, list_losses
from trl_dpo_ext.losses.loss_registry import LOSSES
from trl_dpo_ext.types import PreferencePairs


@pytest.fixture
def losses(monkeypatch):
    """Register losses for one test."""
    monkeypatch.setattr(LOSSES, "_entries", dict(LOSSES._entries))
    return register_loss


def copy_of_dpo(pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.1) -> torch.Tensor:
    return -F.logsigmoid(beta * pairs.margins)


@pytest.mark.parametrize("name", [spec.name for spec in list_losses()])
def test_every_loss_has_as_many_settings_that_it_accepts(name):
    spec = get_loss(name)
    grid = grid_of(spec)
    assert len({setting.as_text() for setting in grid}) == len(grid) == SETTINGS
    assert grid[0] == Setting({})
    for setting in grid:
        spec.check(setting.hyperparameters)


def test_a_grid_by_hand():
    def grid(loss):
        return [setting.as_text() for setting in grid_of(get_loss(loss))]

    rates = ["defaults", "learning rate x2", "learning rate x0.5"]
    assert grid("dpo") == [*rates, "beta=0.3", "beta=0.033", "beta=1"]
    # A value of each in turn; label_smoothing is in [0, 0.5).
    assert grid("cdpo") == [*rates, "beta=0.3", "label_smoothing=0.15", "beta=0.033"]
    assert grid("sft") == [*rates, "learning rate x4", "learning rate x0.25", "learning rate x3"]


def test_thumbs_are_for_losses_on_labels():
    assert readable_kinds(get_loss("dpo"), ["pairs", "thumbs"]) == ["pairs"]
    assert readable_kinds(get_loss("kto"), ["pairs", "thumbs"]) == ["pairs", "thumbs"]


@pytest.mark.parametrize("name", ["dpo", "kto", "qrpo", "exo", "aot", "dpo_rk", "simpo", "beta_dpo"])
def test_losses_of_every_need_train(name, tiny_arena):
    kind = "thumbs" if "labels" in get_loss(name).needs else "rankings"
    record = run_trial(tiny_arena, loss=name, setting=Setting({}), kind=kind, seed=0, use="pick")
    assert not record["diverged"]
    assert [point["step"] for point in record["points"]] == [0, 3, 6]
    assert record["points"][0]["kl"] == pytest.approx(0, abs=1e-5)
    assert record["points"][-1]["kl"] > 1e-3
    assert record["within"]["1"] <= record["within"]["8"] + 0.05


def test_plackett_luce_over_two_is_dpo_and_over_eight_is_not(tiny_arena):
    def points(loss, kind):
        record = run_trial(tiny_arena, loss=loss, setting=Setting({}), kind=kind, seed=0, use="pick")
        return [point["kl"] for point in record["points"]]

    assert points("dpo", "pairs") == pytest.approx(points("plackett_luce", "pairs"), rel=1e-3)
    assert points("dpo", "rankings") != pytest.approx(points("plackett_luce", "rankings"), rel=1e-2)


def test_on_policy_data_come_from_the_policy(tiny_arena, monkeypatch):
    """They are sampled at steps 1 and 4: from the reference at first, then from other weights."""
    monkeypatch.setattr(trial, "FRESH_EVERY", 3)
    judged, make = [], trial.judge_policy

    def record(world, truth, policy, generator):
        judged.append(make(world, truth, policy, generator))
        own = token_logps(policy, judged[-1].prompts, judged[-1].ids, judged[-1].lengths).detach()
        gaps.append((own - judged[-1].ref_token_logps).sum(dim=2).mean().item())
        return judged[-1]

    gaps = []
    monkeypatch.setattr(trial, "judge_policy", record)
    options = {"loss": "dpo", "setting": Setting({}), "kind": "on_policy", "seed": 0, "use": "pick"}
    first = run_trial(tiny_arena, **options)
    assert len(judged) == 2
    assert judged[0].ids.shape == (64, 2, 12)
    assert gaps[0] == pytest.approx(0, abs=1e-4)
    assert gaps[1] > 1e-3  # samples of a policy are likelier under it than under the reference: the KL
    assert run_trial(tiny_arena, **options)["points"] == first["points"]


def numbers(records):
    return {key: {name: value for name, value in row.items() if name != "seconds"} for key, row in records.items()}


def test_a_stopped_arena_goes_on_and_two_give_the_same_numbers(tiny_arena, tmp_path, monkeypatch):
    whole = run_arena(["dpo"], tmp_path / "whole", kinds=["pairs"])
    assert len(whole) == 6 + 3  # a grid of 6 on one seed, the best on three
    assert {row["use"] for row in whole.values()} == {"pick", "measure"}

    ran, record = [], runner._record

    def stopping(one):
        ran.append(one)
        if len(ran) == 4:
            raise KeyboardInterrupt
        return record(one)

    monkeypatch.setattr(runner, "_record", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_arena(["dpo"], tmp_path / "stopped", kinds=["pairs"])
    with open(tmp_path / "stopped" / FILE, "a") as file:
        file.write('{"key": "half a li')
    again = run_arena(["dpo"], tmp_path / "stopped", kinds=["pairs"])
    assert len(ran) == 3 + 1 + 6  # the fourth began twice
    assert numbers(again) == numbers(whole)
    assert numbers(read_trials(tmp_path / "stopped" / FILE)) == numbers(whole)
    run_arena(["dpo"], tmp_path / "stopped", kinds=["pairs"])
    assert len(ran) == 10


def test_a_changed_loss_is_tried_anew(tmp_path):
    """The key of a trial holds the code of the loss, so results of an earlier version are never taken for the new."""

    def code(name, body, comment):
        source = tmp_path / f"{name}.py"
        source.write_text(f'def own(pairs):\n    """{comment}."""\n    return {body}  # {comment}\n')
        scope = {}
        exec(compile(source.read_text(), str(source), "exec"), scope)
        return code_of(scope["own"])

    first = code("first", "-pairs.margins", "one")
    assert code("second", "-pairs.margins", "another comment") == first
    assert code("third", "-2 * pairs.margins", "one") != first


def test_the_best_setting_is_chosen_on_other_seeds_and_prompts(tiny_arena, tmp_path):
    records = run_arena(["dpo"], tmp_path, kinds=["pairs"])
    picks = {one.setting: records[one.key] for one in pick_trials(["dpo"], ["pairs"], "sentiment")}
    best = max(picks, key=lambda setting: sum(picks[setting]["within"].values()))
    measured = measure_trials(["dpo"], ["pairs"], "sentiment", records)
    assert {one.setting for one in measured} == {best}
    assert {one.use for one in measured} == {"measure"}
    assert not {one.seed for one in measured} & {row["seed"] for row in picks.values()}


@pytest.mark.slow
def test_processes_give_the_numbers_of_one(tiny_arena):
    """Processes of their own know nothing of the tiny arena, so these two trials are whole."""
    trials = [Trial("dpo", "pairs", "sentiment", 0, seed, "pick") for seed in (0, 1)]
    found = {row["seed"]: row for row in runner._run(trials, 2, [])}
    script = (
        "import json; from trl_dpo_ext.arena.run_arena import _record; from trl_dpo_ext.arena.plan import Trial; "
        "print(json.dumps(_record(Trial('dpo', 'pairs', 'sentiment', 0, 1, 'pick'))))"
    )
    alone = json.loads(run_python("-c", script).splitlines()[-1])
    assert numbers({"": found[1]}) == numbers({"": {**alone, "key": found[1]["key"]}})
    assert found[0]["within"] != found[1]["within"]


def test_a_copy_is_not_told_apart_and_named(tiny_arena, tmp_path, losses):
    losses("copy_of_dpo")(copy_of_dpo)
    names, kinds = ["dpo", "copy_of_dpo"], ["pairs"]
    records = run_arena(names, tmp_path, kinds=kinds)
    found = {one.loss: one for one in standings(names, kinds, "sentiment", records)}
    copied = found["copy_of_dpo"]
    assert copied.verdict() == "can't be told apart"
    assert all(interval.mean == 0 for interval in copied.differences.values())
    assert found["dpo"].verdict() == ""
    assert verdicts(list(found.values()), names) == [
        "copy_of_dpo: at 4 nats can't be told apart from dpo in 1 of 1 kinds of data (pairs)."
    ]
    assert faults(names, kinds, "sentiment", records) == [
        "dpo and copy_of_dpo give the same runs with their defaults (pairs)."
    ]
    assert faults(["copy_of_dpo"], kinds, "sentiment", records, names) == [
        "copy_of_dpo and dpo give the same runs with their defaults (pairs)."
    ]


def cheat_with(judged):
    """A loss that knows the truth: it looks responses up by their reference log-prob, and puts flipped pairs right."""
    known = judged.ref_token_logps.sum(dim=2).flatten()
    order = known.argsort()
    scores = judged.scores.flatten()[order]

    def score(ref_logps):
        return scores[torch.searchsorted(known[order], ref_logps).clamp(max=len(scores) - 1)]

    def cheat(pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.1) -> torch.Tensor:
        true = torch.sign(score(pairs.ref_chosen_logps) - score(pairs.ref_rejected_logps))
        return -F.logsigmoid(beta * true * pairs.margins)

    return cheat


@pytest.mark.slow
def test_a_loss_that_knows_the_truth_is_found_better(tmp_path, losses, monkeypatch):
    """Where 30 % of the labels are wrong, it learns from the true ones. The world is whole, the runs are short."""
    monkeypatch.setattr(trial, "STEPS", 24)
    monkeypatch.setattr(trial, "POINTS", (12, 24))
    monkeypatch.setattr(plan, "PICK_SEEDS", (100,))
    monkeypatch.setattr(runner, "PUBLISHED", tmp_path / "none")
    plan.code_of_arena.cache_clear()
    losses("cheat")(cheat_with(runner._stage("sentiment").judged))
    losses("copy_of_dpo")(copy_of_dpo)
    names, kinds = ["dpo", "cheat", "copy_of_dpo"], ["flipped"]
    found = standings(names, kinds, "sentiment", run_arena(names, tmp_path, kinds=kinds))
    plan.code_of_arena.cache_clear()
    assert {one.loss: one.verdict() for one in found} == {
        "cheat": "better",
        "copy_of_dpo": "can't be told apart",
        "dpo": "",
    }


def test_faults_are_named(tiny_arena, tmp_path, losses):
    @losses("ignores")
    def ignores(
        pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.1, extra: Annotated[float, Ge(0)] = 1.0
    ) -> torch.Tensor:
        return -F.logsigmoid(beta * pairs.chosen_log_ratios)

    @losses("diverges")
    def diverges(pairs: PreferencePairs) -> torch.Tensor:
        return pairs.margins / 0.0

    @losses("still")
    def still(pairs: PreferencePairs) -> torch.Tensor:
        return 0.0 * pairs.margins

    names = ["ignores", "diverges", "still"]
    records = run_arena(names, tmp_path, kinds=["pairs"])
    said = faults(names, ["pairs"], "sentiment", records)
    assert "ignores ignores extra: other values give the same runs." in said
    assert not any("ignores beta" in sentence for sentence in said)
    assert any(sentence.startswith("diverges diverges: defaults on pairs") for sentence in said)
    assert "still learns nothing from pairs." in said
    assert [one.loss for one in standings(names, ["pairs"], "sentiment", records)].count("diverges") == 0


def test_verdicts_count_kinds_and_correct_for_many_comparisons():
    """By hand, on made-up trials of five seeds."""
    records = {}

    def add(loss, kind, values):
        for one in pick_trials([loss], [kind], "sentiment"):
            within = dict.fromkeys(("1", "2", "4", "8"), 1.0 if one.setting == 0 else 0.0)
            records[one.key] = row(one, within)
        for one, value in zip(measure_trials([loss], [kind], "sentiment", records), values, strict=True):
            records[one.key] = row(one, dict.fromkeys(("1", "2", "4", "8"), value))

    def row(one, within):
        point = {"kl": 3.0, "reward": 0.2, "label_reward": 0.2, "length": 9.0, "distinct_bigrams": 0.7}
        return {
            **asdict(one),
            "key": one.key,
            "tried": one.tried.as_text(),
            "within": within,
            "diverged": False,
            "chosen_shift": 0.5,
            "points": [{"step": 0, **point}, {"step": 6, **point}],
            "seconds": 1.0,
        }

    base = [0.20, 0.22, 0.18, 0.21, 0.19]
    for kind in ("pairs", "flipped"):
        add("dpo", kind, base)
    add("ipo", "pairs", [value + 0.05 + 0.001 * n for n, value in enumerate(base)])
    add("ipo", "flipped", [value + (-1) ** n * 0.05 for n, value in enumerate(base)])
    add("simpo", "pairs", [value - 0.05 - 0.001 * n for n, value in enumerate(base)])
    names = ["dpo", "ipo", "simpo"]
    found = standings(names, ["pairs", "flipped"], "sentiment", records)
    assert [one.loss for one in found if one.kind == "pairs"] == ["ipo", "dpo", "simpo"]
    (ipo,) = [one for one in found if one.loss == "ipo" and one.kind == "pairs"]
    # Differences 0.050 ... 0.054: mean 0.052, sd 0.00158, t(4) = 2.776.
    assert ipo.differences[4.0].mean == pytest.approx(0.052)
    assert ipo.differences[4.0].high - 0.052 == pytest.approx(2.7764 * 0.0015811 / 5**0.5, rel=1e-3)
    assert verdicts(found, names) == [
        "ipo: at 4 nats better than dpo in 1 of 2 kinds of data (pairs); can't be told apart from dpo in 1 of 2 kinds "
        "of data (flipped).",
        "simpo: at 4 nats worse than dpo in 1 of 1 kinds of data (pairs).",
    ]


def test_the_command_prints_and_writes_the_standings(tiny_arena, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["arena", "ipo", "--data", "pairs", "--jobs", "1", "--output", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "pairs: reward within a KL budget" in printed
    assert "ipo: at 4 nats" in printed
    record = json.loads((out / "arena.json").read_text())
    assert {one["loss"] for one in record["standings"]} == {"dpo", "ipo"}  # the baseline is run too
    assert "| ipo |" in (out / "arena.md").read_text()
    assert (out / "arena-pairs.png").stat().st_size > 0


def test_the_page_of_a_researcher(tiny_arena, tmp_path, losses, monkeypatch, capsys):
    """docs/arena.md: its module and its command, on the tiny arena."""
    page = (ROOT / "docs" / "arena.md").read_text()
    section = page.partition("## Your loss in the arena")[2].partition("\n## ")[0]
    (tmp_path / "my_losses.py").write_text(section.partition("```python\n")[2].partition("```")[0])
    command = section.partition("```bash\ntrl-dpo-ext ")[2].partition("\n")[0].split()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        assert main([*command, "--data", "pairs", "--jobs", "1"]) == 0
    finally:
        sys.modules.pop("my_losses", None)
    assert "squared_hinge_of_mine: at 4 nats" in capsys.readouterr().out
    assert (tmp_path / "outputs" / "mine" / "arena-pairs.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dpoo"], "Did you mean"),
        (["dpo", "--data", "pair"], "There is no kind of data 'pair'. Did you mean 'pairs'?"),
        (["dpo", "--reward", "joy"], "There is no reward 'joy'."),
        (["dpo", "--import_module", "no_such_module"], "can't import 'no_such_module'"),
    ],
)
def test_mistakes_stop_before_anything_is_loaded(words, message, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(runner, "load_world", lambda: pytest.fail("world loaded"))
    assert main(["arena", *words, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_lines_are_only_added(tmp_path):
    path = tmp_path / FILE
    append_trial(path, {"key": "a", "x": 1})
    append_trial(path, {"key": "b", "x": 2})
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "b"]
