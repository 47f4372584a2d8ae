"""What `FrontierCallback` records while a model is trained, that it changes nothing, and runs side by side."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import helpers
from tests.training import support
from trl_dpo_ext.cli import main
from trl_dpo_ext.evaluation import (
    FrontierCallback,
    FrontierError,
    best_of_n,
    evaluate_policy,
    pareto_dominators,
    read_frontier,
)

PROMPTS = ["the film was", "two sisters", "great actors", "a"]
SETTINGS: dict[str, Any] = {"max_new_tokens": 5, "seed": 3}


def length(prompts: list[str], completions: list[str]) -> list[float]:
    # A reward that draws, as a judge that samples does.
    random.random(), np.random.rand(), torch.rand(1)
    return [float(len(completion)) for completion in completions]


def trainer(model_dir: str, folder: Any, *, every: int | None = 2, reward: Any = length, **changes: Any) -> Any:
    own = {"max_steps": 5, "disable_dropout": False, "peft_config": support.lora(lora_dropout=0.3)}
    made = support.trainer(model_dir, folder, helpers.ranked_dataset(8, responses=(2, 3)), **{**own, **changes})
    if every is not None:
        made.add_callback(
            FrontierCallback(
                made.processing_class,
                PROMPTS,
                reward,
                reward_name="length",
                method="dpo",
                reference=made.reference,
                every=every,
                **SETTINGS,
            )
        )
    return made


def weights(one: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in one.model.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module")
def run(tiny_model_dir, tmp_path_factory):
    """A run with the callback, its folder, and what the last point should be."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    torch.manual_seed(0)
    made = trainer(tiny_model_dir, folder, save_strategy="steps", save_steps=3)
    made.train()
    last = evaluate_policy(
        made.model, made.processing_class, PROMPTS, length, reference=made.reference, progress=False, **SETTINGS
    )
    return made, folder, last


def test_points_before_between_and_after(run):
    _, folder, last = run
    frontier = read_frontier(folder)
    assert [point.step for point in frontier.points] == [0, 2, 4, 5]
    first, *_, end = frontier.points
    assert set(first.kl.as_dict().values()) == {0}
    assert end.kl.summed > 0.01
    assert (end.reward, end.kl) == (last.reward, last.kl)
    assert (end.rewards, end.kls) == (last.rewards, last.kls)
    assert sum(end.kls) / 4 == pytest.approx(end.kl.summed)
    assert frontier.method == "dpo"
    assert frontier.settings["prompts"] == 4
    assert not list(folder.glob("*.tmp"))


def test_training_is_the_same_without_it(run, tiny_model_dir, tmp_path):
    with_it, _, _ = run
    torch.manual_seed(0)
    without = trainer(tiny_model_dir, tmp_path, every=None)
    without.train()
    assert all(torch.equal(p, q) for p, q in zip(weights(with_it).values(), weights(without).values(), strict=True))
    losses = [[log["loss"] for log in one.state.log_history if "loss" in log] for one in (with_it, without)]
    assert losses[0] == losses[1]


def test_a_resumed_run_goes_on(run, tiny_model_dir):
    _, folder, _ = run
    whole = read_frontier(folder)
    # The checkpoint is of step 3; the points of 4 and 5 are taken again, that of 2 is kept as it stands.
    content = json.loads((folder / "frontier.json").read_text())
    content["points"][1]["reward"]["mean"] = -7.0
    content["points"][2]["reward"]["mean"] = -8.0
    (folder / "frontier.json").write_text(json.dumps(content))
    torch.manual_seed(0)
    trainer(tiny_model_dir, folder, save_strategy="steps", save_steps=3).train(
        resume_from_checkpoint=str(folder / "checkpoint-3")
    )
    again = read_frontier(folder)
    assert [point.step for point in again.points] == [0, 2, 4, 5]
    assert again.points[1].reward.mean == -7
    assert (again.points[0], again.points[2:]) == (whole.points[0], whole.points[2:])

    content["settings"]["seed"] = 9
    (folder / "frontier.json").write_text(json.dumps(content))
    before = (folder / "frontier.json").read_bytes()
    with pytest.raises(FrontierError, match=r"frontier\.json has other settings \(seed: 9 and 3\)"):
        trainer(tiny_model_dir, folder).train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    assert (folder / "frontier.json").read_bytes() == before


def test_arguments_out_of_range():
    named = {"reward_name": "length", "method": "dpo"}
    with pytest.raises(ValueError, match="every=0"):
        FrontierCallback(None, PROMPTS, length, **named, reference=torch.nn.Identity(), every=0)
    with pytest.raises(ValueError, match="at least two prompts, got 1"):
        FrontierCallback(None, ["a"], length, **named, reference=torch.nn.Identity())


def test_dominance_against_the_definition():
    generator = random.Random(0)
    # Few different values, so that ties in either or both occur.
    points = [(float(generator.randint(0, 4)), float(generator.randint(0, 4))) for _ in range(30)]
    found = pareto_dominators(points)
    for index, (reward, kl) in enumerate(points):
        over = [
            other
            for other, (r, k) in enumerate(points)
            if (r > reward and k <= kl) or (r >= reward and k < kl)
        ]  # fmt: skip
        assert (found[index] is None) == (not over)
        assert found[index] is None or (found[index] in over and found[found[index]] is None)
    assert None in found
    assert any(other is not None for other in found)


# The command


def write(folder: Any, rows: list[tuple[int, float, float]], *, method: str = "dpo", **settings: Any) -> str:
    """A run's folder with (step, reward, KL)."""
    points = [
        {
            "step": step,
            "reward": {"mean": reward, "low": reward - 0.1, "high": reward + 0.1, "level": 0.95},
            "kl": {"mean": kl + 1, "standard_error": 0.4, "summed": kl, "summed_standard_error": 0.2},
            "rewards": [reward - 0.2, reward + 0.2],
            "kls": [kl, kl],
        }
        for step, reward, kl in rows
    ]
    shared = {"reward": "vader", "prompts": 2, "prompts_sha256": "0", "max_new_tokens": 4, "seed": 0, "batch_size": 32}
    folder.mkdir(parents=True)
    content = {"format": 1, "method": method, "settings": {**shared, **settings}, "points": points}
    (folder / "frontier.json").write_text(json.dumps(content))
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    return [
        write(tmp_path / "dpo", [(0, 0.0, 0.0), (100, 0.5, 1.0), (200, 0.4, 2.0)]),
        write(tmp_path / "ipo", [(0, 0.0, 0.0), (100, 0.5, 1.5)], method="ipo"),
    ]


def test_runs_side_by_side(runs, tmp_path, capsys):
    output = tmp_path / "picture"
    assert main(["eval", "frontier", *runs, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "0.400 [0.300, 0.500]" in printed
    assert "2.000 ± 0.200" in printed
    assert "dpo, step 100" in printed
    assert "3 of 5 points are not dominated" in printed
    assert (output / "frontier.png").read_bytes().startswith(b"\x89PNG")
    lines = (output / "frontier.csv").read_text().splitlines()
    assert lines[0].startswith("run,method,step,reward,reward_low,reward_high,kl,kl_standard_error,kl_log_ratio")
    assert lines[3] == "dpo,dpo,200,0.4,0.30000000000000004,0.5,2.0,0.2,3.0,0.4,dpo,100"
    assert [line.split(",")[-2:] for line in lines[1:]] == [["", ""]] * 2 + [["dpo", "100"], ["", ""], ["dpo", "100"]]
    assert sorted(path.name for path in output.iterdir()) == ["budgets.csv", "frontier.csv", "frontier.png"]

    assert main(["eval", "frontier", *runs, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["points"][2]["dominated_by"] == {"run": "dpo", "step": 100}
    assert found["points"][0]["dominated_by"] is None
    assert found["settings"]["reward"] == "vader"


def test_runs_of_the_same_name(tmp_path, capsys):
    runs = [write(tmp_path / seed / "dpo", [(0, 0.0, 0.0)]) for seed in ("1", "2")]
    assert main(["eval", "frontier", *runs, "--json", "-"]) == 0
    assert [row["run"] for row in json.loads(capsys.readouterr().out)["points"]] == runs


def test_many_runs_are_shown_by_method(tmp_path, capsys, monkeypatch):
    from matplotlib.axes import Axes

    drawn: dict[str, list[Any]] = {"scatter": [], "plot": [], "errorbar": []}

    def spy(name: str) -> None:
        real = getattr(Axes, name)
        monkeypatch.setattr(Axes, name, lambda self, *a, **k: drawn[name].append((a, k)) or real(self, *a, **k))

    for name in drawn:
        spy(name)

    def shown(runs: list[str]) -> list[str]:
        for calls in drawn.values():
            calls.clear()
        assert main(["eval", "frontier", *runs, "--output", str(tmp_path / "picture")]) == 0
        return [kwargs["label"] for _, kwargs in drawn["plot"] if "label" in kwargs]

    # Run i reaches i / 10 at a KL of 1; so all but the best are dominated, but for their first points.
    runs = [
        write(tmp_path / f"run{i}", [(0, 0.0, 0.0), (9, i / 10, 1.0)], method="ab"[i % 2]) for i in range(11)
    ]  # fmt: skip
    assert shown(runs) == ["a", "b"]
    printed = capsys.readouterr().out
    assert "method" in printed
    # Every run has its line, every point its mark, in the colour of its method.
    assert [kwargs["color"] for _, kwargs in drawn["plot"]] == ["C0"] * 7 + ["C1"] * 6
    assert [len(args[0]) for args, _ in drawn["scatter"]] == [12, 10]
    assert drawn["scatter"][0][1]["facecolors"] == ["C0", "none"] * 5 + ["C0"] * 2
    # Bars stand at points that aren't dominated.
    assert [len(args[0]) for args, _ in drawn["errorbar"]] == [7, 5]

    assert shown(runs[:10]) == [f"run{i}" for i in range(10)]
    of_points, _, of_budgets = capsys.readouterr().out.partition("Mean reward within")
    assert "method" not in of_points
    assert "method" in of_budgets
    assert [len(args[0]) for args, _ in drawn["errorbar"]] == [2] * 10
    # Methods don't help where each run has its own.
    own = [write(tmp_path / f"own{i}", [(0, 0.0, 0.0)], method=str(i)) for i in range(11)]
    assert shown(own) == [f"own{i}" for i in range(11)]
    looks = {(kwargs["color"], kwargs["marker"]) for _, kwargs in drawn["plot"] if "label" in kwargs}
    assert len(looks) == 11


def curve(path: Any, **changes: Any) -> str:
    """What eval best-of-n writes: E of the best of 1, 2, 3 of (0, 0, 3) and (3, 3, 3)."""
    content = {
        "reward": "vader",
        "temperature": 1.0,
        "prompts": 2,
        "prompts_sha256": "0",
        "max_new_tokens": 4,
        "curve": [point.as_dict() for point in best_of_n([[0, 0, 3], [3, 3, 3]], resamples=10)],
        **changes,
    }
    path.write_text(json.dumps(content))
    return str(path)


def test_best_of_n_beside_runs(runs, tmp_path, capsys, monkeypatch):
    from matplotlib.axes import Axes

    lines, bands = [], []
    plot, fill = Axes.plot, Axes.fill_between
    monkeypatch.setattr(Axes, "plot", lambda self, *a, **k: lines.append(a) or plot(self, *a, **k))
    monkeypatch.setattr(Axes, "fill_between", lambda self, *a, **k: bands.append(a) or fill(self, *a, **k))
    arguments = [*runs, "--best-of-n", curve(tmp_path / "curve.json"), "--output", str(tmp_path)]
    assert main(["eval", "frontier", *arguments, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)["best_of_n"]
    assert [row["reward"]["mean"] for row in found] == pytest.approx([2, 2.5, 3])
    assert lines[-1][0] == pytest.approx([0, math.log(2) - 1 / 2, math.log(3) - 2 / 3])
    assert lines[-1][1] == pytest.approx([2, 2.5, 3])
    assert lines[-1][2] == "--"
    assert bands[0][1:] == ([row["reward"]["low"] for row in found], [row["reward"]["high"] for row in found])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": "length"}, "differently (reward: 'length' and 'vader')"),
        ({"prompts": 3}, "(prompts: 3 and 2)"),
        ({"prompts_sha256": "1"}, "(other prompts)"),
        ({"max_new_tokens": 64}, "--first --prompts 2 --max-new-tokens 4, with the runs' --data"),
        ({"temperature": 0.7}, "(temperature: 0.7 and 1)"),
        ({"temperature": None}, "(temperature: None and 1)"),
        (
            {"curve": [{"n": 1}]},
            "curve.json, curve.0.reward is missing (and 2 more). Give the file that eval best-of-n --json",
        ),
        ({"curve": []}, "curve.json, curve: []: list should have at least 1 item"),
    ],
)
def test_best_of_n_that_was_measured_otherwise(runs, tmp_path, capsys, changes, message):
    arguments = ["--best-of-n", curve(tmp_path / "curve.json", **changes), "--output", str(tmp_path / "out")]
    assert main(["eval", "frontier", *runs, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["rewards", "kls"])
@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5, 0.5], [0.5, None], [0.5, math.nan], [0.5, True], "ab", None])
def test_points_without_a_number_for_each_prompt(runs, capsys, name, values):
    file = Path(runs[0]) / "frontier.json"
    content = json.loads(file.read_text())
    content["points"][1][name] = values
    file.write_text(json.dumps(content))
    assert main(["eval", "frontier", *runs]) == 2
    message = capsys.readouterr().err
    assert f"step 100: {name} should be 2 finite numbers, one per prompt" in message or (
        f"{file}, points.1.{name}" in message and " is not a " in message
    )


def test_mistakes_are_sentences(runs, tmp_path, capsys):
    def fails(*arguments: Any) -> str:
        assert main(["eval", "frontier", *map(str, arguments)]) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        return message

    assert "There is no folder 'nowhere'" in fails("nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no frontier.json. A recipe writes one if reward and frontier_steps are set" in fails(
        runs[0], tmp_path / "empty"
    )
    assert "is given twice" in fails(runs[0], runs[0] + "/")
    other = write(tmp_path / "other", [(0, 0.0, 0.0)], reward="length")
    assert "dpo and other were measured differently (reward: 'vader' and 'length')" in fails(runs[0], other)
    other = write(tmp_path / "prompts", [(0, 0.0, 0.0)], prompts_sha256="1")
    assert "(other prompts)" in fails(runs[0], other)
    assert "None of the runs has a point" in fails(write(tmp_path / "none", []))
    assert "the folder" in fails(*runs, "--output", tmp_path / "no" / "where")
    file = tmp_path / "dpo" / "frontier.json"
    file.write_text('{"format": 1, "settings": {}, "points": [{"step": 1}]}')
    assert "frontier.json, method is missing" in fails(*runs)
    file.write_text("[]")
    assert "frontier.json: found a list, expected a mapping" in fails(*runs)
    file.write_text('{"format"')
    assert "can't be read" in fails(*runs)
    file.write_text('{"format": 2}')
    assert "Update trl-dpo-ext" in fails(*runs)
