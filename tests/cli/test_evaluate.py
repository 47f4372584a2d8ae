"""`trl-dpo-ext eval`: on folders of models and adapters, on datasets, on files."""

import json

import pytest
from peft import LoraConfig, get_peft_model

from tests.evaluation.judge_server import GRADE_TEMPLATE, TEMPLATE, serve
from tests.helpers import ranked_rows, tiny_model, tiny_tokenizer
from trl_dpo_ext.cli import main
from trl_dpo_ext.data import load_splits
from trl_dpo_ext.evaluation import FrontierCallback, best_of_n, sample, wilson
from trl_dpo_ext.run import held_out_prompts

LENGTH = "tests.cli.test_evaluate:length"


def length(prompts, completions):
    return [len(completion) for completion in completions]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(capsys, *arguments):
    """The JSON that a command prints."""
    capsys.readouterr()
    assert main(["eval", *map(str, arguments), "--json", "-"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def fails(capsys, *arguments):
    assert main(["eval", *map(str, arguments)]) == 2
    # The libraries' progress bars stand before it.
    *_, message = capsys.readouterr().err.strip().splitlines()
    assert message.startswith("error: ")
    return message


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        write(tmp_path / "data" / f"{split}.jsonl", ranked_rows(12, seed=len(split)))
    return str(tmp_path / "data")


@pytest.fixture(scope="module")
def adapter(tiny_model_dir, tmp_path_factory):
    """A run's folder as far as it is read: an adapter that changes the model, and a recipe."""
    folder = tmp_path_factory.mktemp("adapter")
    model = get_peft_model(
        tiny_model(tiny_tokenizer()),
        LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    model.peft_config["default"].base_model_name_or_path = tiny_model_dir
    model.save_pretrained(folder)
    (folder / "recipe.yaml").write_text(f"model_name_or_path: {tiny_model_dir}\n")
    return str(folder)


@pytest.fixture
def files(tmp_path):
    prompts = [f"p{number}" for number in range(6)]
    rows = {"one": ["aaa"] * 6, "two": ["aaaa", "aaaa", "aaaa", "aaaa", "a", "aaa"], "met": ["aaa", "aa"] * 3}
    return {
        name: write(
            tmp_path / f"{name}.jsonl",
            [{"prompt": p, "completion": c} for p, c in zip(prompts, texts, strict=True)],
        )
        for name, texts in rows.items()
    }


def test_win_rate_of_files_by_hand(capsys, files):
    found = run(capsys, "win-rate", files["one"], files["two"], "--against", files["met"], "--judge", LENGTH)
    one, two = found["results"]
    assert (one["wins"], one["ties"], one["losses"], one["temperature"]) == (3, 3, 0, None)
    assert (two["wins"], two["ties"], two["losses"]) == (5, 0, 1)
    assert one["rate"] == wilson(4.5, 6).as_dict()
    (compared,) = found["comparisons"]
    assert compared["temperature"] is None
    # On p0, p2 the second wins instead of tying, on p4 it loses instead of tying; elsewhere both win.
    assert compared["difference"]["mean"] == pytest.approx(5 / 6 - 4.5 / 6)
    assert (compared["test"]["first"], compared["test"]["second"], compared["test"]["p_value"]) == (1, 2, 1.0)
    assert found["versions"]["trl"]


def test_win_rate_of_an_adapter_over_temperatures(capsys, adapter, tiny_model_dir, data, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    options = ["--data", data, "--judge", LENGTH, "--max-new-tokens", 4, "--prompts", 8, "--pairs", pairs]
    found = run(capsys, "win-rate", adapter, tiny_model_dir, "--temperature", 0, 1, *options)
    assert [(r["model"], r["temperature"]) for r in found["results"]] == [
        (adapter, 0),
        (adapter, 1),
        (tiny_model_dir, 0),
        (tiny_model_dir, 1),
    ]
    assert found["prompts"] == 8
    rows = read(pairs)
    assert len(rows) == 32
    own = {row["prompt"]: row["completions"][row["ranks"].index(0)] for row in read(tmp_path / "data" / "test.jsonl")}
    words = {True: "first", False: "second"}
    for row in rows:
        assert row["second"] == own[row["prompt"]]
        sizes = len(row["first"]), len(row["second"])
        assert row["judge"] == ("tie" if sizes[0] == sizes[1] else words[sizes[0] > sizes[1]])
    # The samples are those of each model, in the order of the prompts.
    greedy = [row for row in rows if row["model"] == tiny_model_dir and row["temperature"] == 0]
    tokenizer = tiny_tokenizer()
    alone = sample(
        tiny_model(tokenizer),
        tokenizer,
        [row["prompt"] for row in greedy],
        temperature=0,
        max_new_tokens=4,
        progress=False,
    )
    assert [row["first"] for row in greedy] == alone.completions
    assert [row["first"] for row in rows if row["model"] == adapter and row["temperature"] == 0] != alone.completions


def test_a_file_meets_a_model_at_each_temperature(capsys, tiny_model_dir, data, tmp_path):
    texts = {row["prompt"]: "a" * 12 for row in read(tmp_path / "data" / "test.jsonl")}
    samples = write(tmp_path / "s.jsonl", [{"prompt": prompt, "completion": text} for prompt, text in texts.items()])
    pairs = tmp_path / "pairs.jsonl"
    command = ["win-rate", samples, "--against", tiny_model_dir, "--judge", LENGTH, "--max-new-tokens", 3]
    command += ["--temperature", 0, 1, "--pairs", pairs]
    assert [result["temperature"] for result in run(capsys, *command)["results"]] == [0, 1]
    assert {row["temperature"] for row in read(pairs)} == {0, 1}
    assert main(["eval", *map(str, command)]) == 0
    rows = [line.split("│")[2].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert rows == ["0", "1"]


def test_a_model_against_itself(capsys, tiny_model_dir, data):
    options = ["--data", data, "--judge", LENGTH, "--max-new-tokens", 3, "--prompts", 12]
    (found,) = run(capsys, "win-rate", tiny_model_dir, "--against", tiny_model_dir, *options)["results"]
    assert found["ties"] < 12  # it doesn't meet its own samples
    assert found["rate"]["low"] <= 0.5 <= found["rate"]["high"]


def test_conversations_are_rendered_for_the_model_and_read_as_a_dialogue(capsys, tiny_model_dir, tmp_path):
    folder = tmp_path / "chats"
    folder.mkdir()
    rows = ranked_rows(4, conversational=True)
    write(folder / "test.jsonl", rows)
    pairs = tmp_path / "pairs.jsonl"
    run(
        capsys, "win-rate", tiny_model_dir, "--data", folder, "--judge", LENGTH, "--max-new-tokens", 3,
        "--pairs", pairs, "--temperature", 0,
    )  # fmt: skip
    by_prompt = {f"User: {row['prompt'][0]['content']}\n\nAssistant: ": row for row in rows}
    found = read(pairs)
    assert {row["prompt"] for row in found} == set(by_prompt)
    tokenizer = tiny_tokenizer()
    for row in found:
        of = by_prompt[row["prompt"]]
        assert row["second"] == of["completions"][of["ranks"].index(0)][0]["content"]
        text = tokenizer.apply_chat_template(of["prompt"], add_generation_prompt=True, tokenize=False)
        alone = sample(tiny_model(tokenizer), tokenizer, [text], temperature=0, max_new_tokens=3, progress=False)
        assert [row["first"]] == alone.completions


def test_sample_then_best_of_n_of_the_file(capsys, tiny_model_dir, data, tmp_path):
    output = tmp_path / "samples.jsonl"
    options = ["--data", data, "--max-new-tokens", "4", "--prompts", "6", "--temperature", "0.8", "--samples", "5"]
    assert main(["eval", "sample", tiny_model_dir, str(output), *options]) == 0
    said = capsys.readouterr()
    assert "Saved 30 samples of 6 prompts" in said.out
    assert f"Loading {tiny_model_dir}.\n" in said.err
    rows = read(output)
    assert {row["temperature"] for row in rows} == {0.8}
    rewards = {}
    for row in rows:
        rewards.setdefault(row["prompt"], []).append(float(len(row["completion"])))
    assert len({row["completion"] for row in rows}) > 20  # each sample drawn by itself, not one five times
    found = run(capsys, "best-of-n", output, "--reward", LENGTH, "--samples", 5)
    assert found["curve"] == json.loads(json.dumps([point.as_dict() for point in best_of_n(list(rewards.values()))]))
    direct = run(capsys, "best-of-n", tiny_model_dir, "--reward", LENGTH, *options)
    assert direct["curve"] == found["curve"]


def test_first_prompts_are_those_of_a_recipe(capsys, tiny_model_dir, tmp_path):
    rows = ranked_rows(8, seed=5)
    rows[1]["prompt"] = rows[0]["prompt"]  # stays twice
    rows[2]["ranks"] = [0] * len(rows[2]["ranks"])  # all tied: dropped
    rows[3]["completions"] = None  # invalid: dropped
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "test.jsonl", rows)
    dataset = load_splits(str(tmp_path / "data"), needs="test")["test"]
    prompts = held_out_prompts(dataset, tiny_tokenizer(), 6)
    assert [prompt.text for prompt in prompts] == [rows[i]["prompt"] for i in (0, 1, 4, 5)]
    options = ["--data", tmp_path / "data", "--first", "--prompts", 6, "--max-new-tokens", 3, "--samples", 2]
    found = run(capsys, "best-of-n", tiny_model_dir, "--reward", LENGTH, *options)
    assert found["prompts"] == 4
    callback = FrontierCallback(
        None, prompts, length, reward_name="x", method="dpo", reference=tiny_model(tiny_tokenizer())
    )
    assert found["prompts_sha256"] == callback.settings["prompts_sha256"]
    drawn = run(capsys, "best-of-n", tiny_model_dir, "--reward", LENGTH, *(o for o in options if o != "--first"))
    assert drawn["prompts_sha256"] != found["prompts_sha256"]


def test_agreement_of_a_reward_and_people(capsys, tmp_path):
    texts = [("aa", "a", "first"), ("a", "aa", "second"), ("aa", "a", "second"), ("b", "a", "tie"), ("b", "aa", None)]
    pairs = write(
        tmp_path / "pairs.jsonl",
        [{"prompt": "p", "first": a, "second": b, "annotator_1": label} for a, b, label in texts],
    )
    found = run(capsys, "agreement", pairs, "--label", "annotator_1", "--judge", LENGTH)
    (row,) = found["agreements"]
    assert row["judges"] == ["annotator_1", LENGTH]
    assert (row["pairs"], row["rate"]["mean"], row["decided_pairs"]) == (4, 0.75, 3)


def test_a_judge_behind_an_endpoint(capsys, files, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-a-test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.yaml").write_text(TEMPLATE)
    command = ["win-rate", files["two"], "--against", files["met"], "--judge", "endpoint:m", "--template", "t.yaml"]
    with serve() as server:
        stopped = fails(capsys, *command, "--base-url", server.url, "--cap-requests", 5)
        assert "cap of 5 requests" in stopped
        (found,) = run(capsys, *command, "--base-url", server.url)["results"]
        assert set(server.asked.values()) == {1}
    assert (found["wins"], found["ties"], found["losses"]) == (5, 0, 1)
    assert len(read(tmp_path / "verdicts.jsonl")) == 12
    assert "sk-secret" not in (tmp_path / "verdicts.jsonl").read_text()


def test_a_reward_behind_an_endpoint(capsys, files, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-a-test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.yaml").write_text(GRADE_TEMPLATE)
    command = ["best-of-n", files["two"], "--samples", 1]
    with serve() as server:
        asked = [*command, "--reward", "endpoint:m", "--template", "t.yaml", "--cache", "c.jsonl"]
        stopped = fails(capsys, *asked, "--base-url", server.url, "--cap-requests", 2)
        assert "cap of 2 requests" in stopped
        found = run(capsys, *asked, "--base-url", server.url)
        assert set(server.asked.values()) == {1}
    assert found["curve"] == run(capsys, *command, "--reward", LENGTH)["curve"]
    assert len(read(tmp_path / "c.jsonl")) == 6
    assert "no cache to set" in fails(capsys, *command, "--reward", LENGTH, "--cache", "c.jsonl")
    assert "asks for a grade" in fails(
        capsys, "win-rate", files["two"], "--against", files["met"], "--judge", "endpoint:m", "--template", "score"
    )


def test_tables(capsys, files, tmp_path):
    json_file = tmp_path / "out.json"
    command = ["eval", "win-rate", files["one"], files["two"], "--against", files["met"], "--judge", LENGTH]
    assert main([*command, "--json", str(json_file)]) == 0
    out = capsys.readouterr().out
    assert "0.750 [" in out
    assert "better on 2 prompts, worse on 1, exact sign test p = 1." in out
    assert json.loads(json_file.read_text())["judge"] == LENGTH
    assert main(["eval", "best-of-n", files["one"], "--reward", LENGTH, "--samples", "1"]) == 0
    assert "3.000 [3.000, 3.000]" in capsys.readouterr().out
    pairs = write(tmp_path / "pairs.jsonl", [{"prompt": "p", "first": "a", "second": "b", "x": "tie", "y": "tie"}])
    assert main(["eval", "agreement", pairs, "--label", "x", "--label", "y"]) == 0
    assert "1.000 [" in capsys.readouterr().out


def test_mistakes_are_sentences(capsys, files, data, tmp_path, tiny_model_dir):
    one, judge = files["one"], ["--judge", LENGTH]
    assert "Say with --against" in fails(capsys, "win-rate", one, *judge)
    assert "Say with --data" in fails(capsys, "win-rate", tiny_model_dir, "--against", tiny_model_dir, *judge)
    assert "given twice" in fails(capsys, "win-rate", one, one, "--against", one, *judge)
    assert "Unknown reward 'vadr'" in fails(capsys, "win-rate", one, "--against", one, "--judge", "vadr")
    assert "there is no base_url to set" in fails(
        capsys, "win-rate", one, "--against", one, *judge, "--base-url", "http://x"
    )
    assert "the folder" in fails(capsys, "win-rate", one, "--against", one, *judge, "--json", tmp_path / "no" / "x")
    assert "'nowhere.jsonl' does not exist" in fails(capsys, "win-rate", one, "--against", "nowhere.jsonl", *judge)
    assert "does not exist" in fails(capsys, "win-rate", "./nowhere", "--data", data, *judge)
    assert "no split 'tset'" in fails(capsys, "win-rate", one, "--data", data, "--split", "tset", *judge)
    assert "has 0 samples of" in fails(capsys, "win-rate", one, "--data", data, *judge)
    assert "has 1 samples of 'p0'; needed: 16" in fails(capsys, "best-of-n", one, "--reward", LENGTH)
    assert "give a model" in fails(capsys, "sample", one, tmp_path / "x.jsonl", "--data", data)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    assert "line 2: expected text in prompt, completion; completion has none" in fails(
        capsys, "win-rate", broken, "--against", broken, *judge
    )
    broken.write_text('{"prompt"\n')
    assert "line 1 is not JSON" in fails(capsys, "best-of-n", broken, "--reward", LENGTH)
    assert "at least two different judges" in fails(capsys, "agreement", one, "--label", "x")
    pairs = write(tmp_path / "pairs.jsonl", [{"prompt": "p", "first": "a", "second": "b", "x": "tie", "y": "A"}])
    assert "no column 'z'; it has: prompt, first" in fails(capsys, "agreement", pairs, "--label", "x", "--label", "z")
    assert "row 0: y is 'A'" in fails(capsys, "agreement", pairs, "--label", "x", "--label", "y")


@pytest.mark.parametrize(
    "arguments",
    [["eval"], ["eval", "win-rate", "m"], ["eval", "best-of-n", "m", "--reward", "vader", "--samples", "0"]],
)
def test_mistakes_on_the_command_line_exit_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
