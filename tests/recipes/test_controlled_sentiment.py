"""The controlled sentiment experiment: its grid, its scripts, the RL baseline on a tiny model, and that it goes on."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers import ROOT, load_script, ranked_rows
from trl_dpo_ext.cli import make_parser
from trl_dpo_ext.evaluation import read_frontier
from trl_dpo_ext.run.sweeping.sweep_plan import named_runs, plan_sweep

FOLDER = "recipes/controlled_sentiment"


@pytest.fixture(scope="module")
def run() -> Any:
    return load_script(f"{FOLDER}/run.py")


@pytest.fixture(scope="module")
def rloo() -> Any:
    return load_script("recipes/rloo.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, count, seed in (("train", 12, 0), ("test", 6, 1)):
        rows = ranked_rows(count, seed=seed, scores=True)
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_the_grid_is_the_papers():
    """arXiv 2305.18290, appendix C.3: betas of DPO, alphas of unlikelihood, seeds of preferred-FT; 22 runs or more."""
    grid = yaml.safe_load((ROOT / FOLDER / "grid.yaml").read_text())
    assert len(grid) >= 22
    for loss in ("dpo", "minor_dpo", "plackett_luce"):
        seed0 = [run for run in grid.values() if run.get("loss_type") == loss and "seed" not in run]
        assert [run["beta"] for run in seed0] == [0.05, 0.1, 1, 5]
    alphas = [run["loss_kwargs"]["unlikelihood"]["alpha"] for run in grid.values() if "unlikelihood" in str(run)]
    assert alphas == [0.05, 0.1, 0.5, 1]
    methods = Counter(run.get("loss_type", "rloo" + run.get("reward", "")[:8]) for run in grid.values())
    assert methods["sft"] == 3
    assert {"ipo", "simpo", "rloo", "rloooutputs/"} <= set(methods)


def test_every_run_is_one_that_its_script_takes(run, rloo, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(run, "OUTPUT", tmp_path)
    monkeypatch.setattr(run, "RUNS", tmp_path / "runs")
    names, planned = list(run.grid()), {}
    for command in run.sweeps(names, 2).values():
        arguments, options = make_parser().parse_known_args(command[2:])
        for one in plan_sweep(["--config", arguments.recipe, *options], named_runs(arguments.runs)):
            planned[one.name] = one.folder
            assert one.recipe.config.loss_type[0].startswith(one.name.partition("-")[0]) or "preferred_ft" in one.name
    for name, (script, *given) in run.rl_runs(names).items():
        assert script == "recipes/rloo.py"
        parser = rloo.StrictParser((rloo.RLOOArguments, rloo.RLOOConfig, rloo.ModelConfig))
        planned[name] = Path(parser.parse_args_and_config(given)[1].output_dir)
    assert planned == {name: tmp_path / "runs" / name for name in names}


def test_a_sweep_of_other_runs_is_not_finished(run, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "OUTPUT", tmp_path)
    done = tmp_path / "done" / "sweep-0.json"
    done.parent.mkdir()
    done.write_text("{}")
    assert list(run.sweeps(["dpo-1", "rloo_true-0.1"], 2)) == ["sweep-0"]
    assert not done.exists()
    assert yaml.safe_load((tmp_path / "sweeps" / "0.yaml").read_text()) == {"dpo-1": {"loss_type": "dpo", "beta": 1.0}}


def test_what_is_shared_is_the_same():
    """Else points of preference losses and of RL would not belong on one picture."""
    preferences, rl = (yaml.safe_load((ROOT / FOLDER / f"{name}.yaml").read_text()) for name in ("preferences", "rloo"))
    both = {key for key in preferences if key in rl} - {"per_device_train_batch_size"}
    assert {
        "model_name_or_path",
        "dataset_name",
        "eval_prompts",
        "max_steps",
        "frontier_steps",
        "learning_rate",
    } <= both
    assert {key: preferences[key] for key in both} == {key: rl[key] for key in both}
    # Rankings of 4 a step here, completions a step there.
    assert rl["per_device_train_batch_size"] == 4 * preferences["per_device_train_batch_size"]
    assert rl["num_generations"] == 4
    assert rl["eval_reward"] == preferences["reward"]


def test_all_pairs_of_a_ranking(data, tmp_path):
    load_script(f"{FOLDER}/pairs.py").main(str(data), str(tmp_path / "pairs"))
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    pairs = [json.loads(line) for line in (tmp_path / "pairs" / "train.jsonl").read_text().splitlines()]
    assert len(pairs) == sum(
        first > second for row in rows for i, first in enumerate(row["scores"]) for second in row["scores"]
    )
    score = {(row["prompt"], c): s for row in rows for c, s in zip(row["completions"], row["scores"], strict=True)}
    assert all(score[p["prompt"], p["chosen"]] > score[p["prompt"], p["rejected"]] for p in pairs)
    assert (tmp_path / "pairs" / "test.jsonl").exists()


def test_sentences_and_prefixes_come_from_different_ends(tmp_path, monkeypatch):
    script = load_script(f"{FOLDER}/sentences.py")
    build_data = sys.modules["build_data"]
    snippets = [f"sentence {number} of many" for number in range(9000)]
    monkeypatch.setattr(script, "read_snippets", lambda: snippets)
    script.main(str(tmp_path))
    texts = {json.loads(line)["text"] for line in (tmp_path / "train.jsonl").read_text().splitlines()}
    assert len(texts) == script.COUNT

    seen = []

    class Tokenizer:
        def __call__(self, text: str) -> dict[str, list[int]]:
            seen.append(text)
            return {"input_ids": list(range(20))}

        def decode(self, ids: Any) -> str:
            return f" {len(seen)}"

    prefixes = build_data.draw_prefixes(snippets, Tokenizer())
    taken = [next(prefixes) for _ in range(sum(build_data.SPLITS.values()))]
    assert len(set(taken)) == 1280
    assert not texts & set(seen)


def options(data: Path, model: str, output: Path, **changes: Any) -> list[str]:
    given = {
        "model_name_or_path": model,
        "dataset_name": data,
        "output_dir": output,
        "eval_prompts": 3,
        "eval_max_new_tokens": 3,
        "max_completion_length": 3,
        "num_generations": 2,
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "frontier_steps": 2,
        "warmup_steps": 0,
        "bf16": False,
        "disable_tqdm": True,
        **changes,
    }
    return ["--config", f"{FOLDER}/rloo.yaml", *(part for k, v in given.items() for part in (f"--{k}", str(v)))]


def test_rloo_trains_on_a_reward_and_takes_points(rloo, data, tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    asked = []

    def shorter(prompts: list[str], completions: list[str]) -> list[float]:
        asked.extend(zip(prompts, completions, strict=True))
        return [-float(len(completion)) for completion in completions]

    monkeypatch.setattr(rloo, "get_reward", lambda name: shorter)
    rloo.main(options(data, tiny_model_dir, tmp_path / "out", reward="shorter", learning_rate=0.01))
    frontier = read_frontier(tmp_path / "out")
    assert [point.step for point in frontier.points] == [0, 2, 3]
    assert frontier.points[0].kl.summed == 0
    assert frontier.points[-1].kl.summed > 0
    assert (frontier.method, frontier.settings["reward"]) == ("rloo, learned reward", "vader")
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert record["recipe"]["beta"] == 0.1
    evaluation = record["evaluation"]
    assert evaluation["after"]["kl"] == frontier.points[-1].kl.as_dict()
    assert evaluation["before"]["reward"] == frontier.points[0].reward.as_dict()
    assert len(evaluation["after"]["samples"]) == 3
    trained = [entry for entry in record["log"] if "kl" in entry]
    assert trained
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    prompts = {json.loads(line)["prompt"] for line in (data / "train.jsonl").read_text().splitlines()}
    assert sum(prompt in prompts for prompt, _ in asked) >= 3 * 4

    with pytest.raises(FileExistsError, match="holds a finished run"):
        rloo.main(options(data, tiny_model_dir, tmp_path / "out"))


def test_rewards_of_rl_read_conversations_as_the_policy_does(rloo, tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for name, seed in (("train", 0), ("test", 1)):
        rows = ranked_rows(4, seed=seed, conversational=True)
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = []

    def length(prompts: list[str], completions: list[str]) -> list[float]:
        asked.extend([*prompts, *completions])
        return [float(len(completion)) for completion in completions]

    monkeypatch.setattr(rloo, "get_reward", lambda name: length)
    given = options(tmp_path, tiny_model_dir, tmp_path / "out", reward="length", max_steps=1)
    rloo.main([*given, "--eval_reward", "length"])
    assert all(isinstance(text, str) for text in asked)
    tokenizer = rloo.AutoTokenizer.from_pretrained(tiny_model_dir)
    expected = {
        tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        for row in ranked_rows(4, seed=0, conversational=True)
    }
    assert set(asked) & expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"use_peft": False}, "use_peft: true is needed"), ({"rewards": "vader"}, "Unknown option --rewards")],
)
def test_mistakes_stop_before_a_model_is_loaded(rloo, data, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(ROOT)
    with pytest.raises(rloo.ParseError, match=message):
        rloo.main(options(data, "nowhere", tmp_path / "out", **changes))


@pytest.mark.parametrize(
    ("column", "value"), [("tools", [{"type": "function"}]), ("chat_template_kwargs", {"enable_thinking": False})]
)
def test_rows_that_trl_would_render_without_their_tools_are_refused(column, value, rloo, data, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    for name in ("train", "test"):
        rows = [{**row, column: value} for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(rloo.DataError, match=rf"row 0: it has {column}, and TRL's RLOOTrainer reads only the prompt"):
        rloo.main(options(tmp_path, "nowhere", tmp_path / "out"))


def test_what_is_finished_is_not_done_again(run, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(run, "OUTPUT", tmp_path)
    counting = "import sys; file = open(sys.argv[1], 'a'); file.write('x'); print('so far'); sys.exit(int(sys.argv[2]))"
    command = ["-c", counting, str(tmp_path / "count")]
    assert not run.finish("one", [*command, "3"], 1)
    assert "one failed with exit code 3" in (printed := capfd.readouterr().out)
    assert "so far" in printed
    assert run.finish("one", [*command, "0"], 1)
    assert run.finish("one", [*command, "0"], 1)
    assert (tmp_path / "count").read_text() == "xx"
    assert json.loads((tmp_path / "done" / "one.json").read_text())["command"] == [*command, "0"]


@pytest.fixture(scope="module")
def table() -> Any:
    return load_script(f"{FOLDER}/table.py")


def test_the_docs_show_the_results(table):
    results = json.loads((ROOT / "benchmarks/results/controlled_sentiment.json").read_text())
    page = (ROOT / "docs/evaluation.md").read_text()
    shown = page.partition("<!-- experiment:begin -->\n")[2].partition("<!-- experiment:end -->")[0]
    assert shown == f"{table.reached(results)}\n\n{table.within(results)}\n"
    grid = yaml.safe_load((ROOT / FOLDER / "grid.yaml").read_text())
    assert results["grid"] == grid
    assert {point["run"] for point in results["points"]} == set(grid)


def test_the_tables_by_hand(table):
    def interval(mean: float) -> dict[str, float]:
        return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "level": 0.95}

    def point(run: str, step: int, reward: float, kl: float, free: bool = True) -> dict[str, Any]:
        return {
            "run": run,
            "method": run[:3],
            "step": step,
            "reward": interval(reward),
            "kl": {"summed": kl, "summed_standard_error": kl / 10},
            "dominated_by": None if free else {"run": "dpo-1", "step": 2},
        }

    def within(method: str, budget: float, reward: float | None, difference: float | None) -> dict[str, Any]:
        values = {"reward": reward, "difference": difference}
        return {"method": method, "budget": budget} | {k: v if v is None else interval(v) for k, v in values.items()}

    results = {
        "baseline": "dpo",
        "points": [
            point("dpo-1", 0, 0.9, 0.0),  # the reference is nobody's merit
            point("dpo-1", 2, 0.5, 4.0),
            point("dpo-2", 0, 0.9, 0.0),
            point("dpo-2", 2, 0.25, 5.0, free=False),
            point("ipo-1", 0, 0.9, 0.0),
            point("ipo-1", 2, 0.375, 6.0, free=False),
        ],
        "within_budgets": [
            within("dpo", 1, 0.5, 0.0),
            within("ipo", 1, 0.25, -0.25),
            within("dpo", 0.5, 0.75, 0.0),
            within("ipo", 0.5, None, None),
        ],
    }
    assert table.reached(results).splitlines()[2:] == [
        "| dpo | 2 | 2, 1 | 0.50 [0.40, 0.60] | 4.00 ± 0.40 | dpo-1, 2 |",
        "| ipo | 1 | 1, 0 | 0.38 [0.28, 0.47] | 6.00 ± 0.60 | ipo-1, 2 |",
    ]
    assert table.within(results).splitlines() == [
        "| KL at most, nats | 1 | 0.5 |",
        "| --- | ---: | ---: |",
        "| **dpo** | 0.50 [0.40, 0.60] | 0.75 [0.65, 0.85] |",
        "| ipo, against dpo | -0.25 [-0.35, -0.15] | n/a |",
    ]
