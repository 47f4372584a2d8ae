"""What `FrontierCallback` records while a model is trained, that it changes nothing, and runs side by side."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
import torch

from tests import helpers
from tests.trainer import support
from trl_dpo_ext.cli import main
from trl_dpo_ext.evaluation import FrontierCallback, FrontierError, dominating, evaluate_policy, read_frontier

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
    with pytest.raises(FrontierError, match=r"frontier\.json was begun with other settings \(seed: 9 and 3\)"):
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
    found = dominating(points)
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


def write(folder: Any, rows: list[tuple[int, float, float]], **settings: Any) -> str:
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
    shared = {"reward": "vader", "prompts": 8, "prompts_sha256": "0", "max_new_tokens": 4, "seed": 0, "batch_size": 32}
    folder.mkdir(parents=True)
    content = {"format": 1, "method": "dpo", "settings": {**shared, **settings}, "points": points}
    (folder / "frontier.json").write_text(json.dumps(content))
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    return [
        write(tmp_path / "dpo", [(0, 0.0, 0.0), (100, 0.5, 1.0), (200, 0.4, 2.0)]),
        write(tmp_path / "ipo", [(0, 0.0, 0.0), (100, 0.5, 1.5)]),
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
    assert lines[0].startswith("run,step,reward,reward_low,reward_high,kl,kl_standard_error,kl_log_ratio")
    assert lines[3] == "dpo,200,0.4,0.30000000000000004,0.5,2.0,0.2,3.0,0.4,dpo,100"
    assert [line.split(",")[-2:] for line in lines[1:]] == [["", ""]] * 2 + [["dpo", "100"], ["", ""], ["dpo", "100"]]
    assert sorted(path.name for path in output.iterdir()) == ["frontier.csv", "frontier.png"]

    assert main(["eval", "frontier", *runs, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["points"][2]["dominated_by"] == {"run": "dpo", "step": 100}
    assert found["points"][0]["dominated_by"] is None
    assert found["settings"]["reward"] == "vader"


def test_runs_of_the_same_name(tmp_path, capsys):
    runs = [write(tmp_path / seed / "dpo", [(0, 0.0, 0.0)]) for seed in ("1", "2")]
    assert main(["eval", "frontier", *runs, "--json", "-"]) == 0
    assert [row["run"] for row in json.loads(capsys.readouterr().out)["points"]] == runs


def test_mistakes_are_sentences(runs, tmp_path, capsys):
    def fails(*arguments: Any) -> str:
        assert main(["eval", "frontier", *map(str, arguments)]) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        return message

    assert "There is no folder 'nowhere'" in fails("nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no frontier.json. A recipe writes one where reward and frontier_steps are set" in fails(
        runs[0], tmp_path / "empty"
    )
    assert "is given twice" in fails(runs[0], runs[0] + "/")
    other = write(tmp_path / "other", [(0, 0.0, 0.0)], reward="length")
    assert "dpo and other were measured differently (reward: 'vader' and 'length')" in fails(runs[0], other)
    other = write(tmp_path / "prompts", [(0, 0.0, 0.0)], prompts_sha256="1")
    assert "(other prompts)" in fails(runs[0], other)
    assert "no point in any of the runs" in fails(write(tmp_path / "none", []))
    assert "the folder" in fails(*runs, "--output", tmp_path / "no" / "where")
    file = tmp_path / "dpo" / "frontier.json"
    file.write_text('{"format": 1, "settings": {}, "points": [{"step": 1}]}')
    assert "is no frontier of a run" in fails(*runs)
    file.write_text("[]")
    assert "is no frontier of a run" in fails(*runs)
    file.write_text('{"format"')
    assert "can't be read" in fails(*runs)
    file.write_text('{"format": 2}')
    assert "Update trl-dpo-ext" in fails(*runs)
