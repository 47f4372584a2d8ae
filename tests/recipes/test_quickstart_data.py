import gzip
import json
import math
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.helpers import ROOT, TEXT, load_script, tiny_model, tiny_tokenizer
from trl_dpo_ext.data import format_dataset
from trl_dpo_ext.evaluation import get_reward
from trl_dpo_ext.run.quickstart_model import model_folder

QUICKSTART = ROOT / "recipes" / "quickstart"
DATA = QUICKSTART / "data"
LEAST = {"train": 900, "test": 220}


@pytest.fixture(scope="module")
def build_data():
    sys.path.insert(0, str(QUICKSTART))
    try:
        return load_script("recipes/quickstart/build_data.py")
    finally:
        sys.path.remove(str(QUICKSTART))


@pytest.fixture(scope="module")
def splits():
    return {
        name: [json.loads(line) for line in gzip.decompress((DATA / f"{name}.jsonl.gz").read_bytes()).splitlines()]
        for name in LEAST
    }


@pytest.mark.parametrize("name", LEAST)
def test_rows(splits, name):
    rows = splits[name]
    assert len(rows) >= LEAST[name]
    for row in rows:
        assert row.keys() == {"prompt", "completions", "scores"}
        assert row["prompt"] == row["prompt"].strip()
        assert len(set(row["completions"])) == len(row["scores"]) == 4
        assert all(completion.strip() and "\ufffd" not in completion for completion in row["completions"])
        assert all(math.isfinite(score) for score in row["scores"])
        assert len(set(row["scores"])) > 1


def test_files_are_small_and_carry_no_date():
    files = sorted(DATA.glob("*.gz"))
    assert [path.name for path in files] == ["test.jsonl.gz", "train.jsonl.gz"]
    assert sum(path.stat().st_size for path in files) < 2_000_000
    for path in files:
        header = path.read_bytes()[:10]
        assert header[3] == 0  # no file name
        assert header[4:8] == bytes(4)  # no time


def test_prefixes_are_all_different(splits):
    prefixes = [row["prompt"].casefold() for rows in splits.values() for row in rows]
    assert len(set(prefixes)) == len(prefixes)


def test_no_text_is_in_both_splits(splits):
    train, test = ({c.strip() for row in splits[name] for c in row["completions"]} for name in ("train", "test"))
    assert not train & test


@pytest.mark.parametrize("name", LEAST)
def test_scores_are_vaders(splits, name):
    reward = get_reward("vader")
    for row in splits[name]:
        assert reward([row["prompt"]] * 4, row["completions"]) == row["scores"]


@pytest.mark.parametrize("name", LEAST)
def test_prefixes_end_where_tokens_do(splits, name):
    folder = model_folder()
    if not folder.exists():
        pytest.skip("the quickstart's model is not in the cache (python recipes/quickstart/model.py)")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for row in splits[name]:
        prompt_ids = tokenizer(row["prompt"])["input_ids"]
        assert 2 <= len(prompt_ids) <= 8
        for ids in tokenizer([row["prompt"] + completion for completion in row["completions"]])["input_ids"]:
            assert ids[: len(prompt_ids)] == prompt_ids


@pytest.mark.parametrize("name", LEAST)
def test_the_package_accepts_every_row(splits, name):
    rows = splits[name]
    formatted = format_dataset(Dataset.from_list(rows), name=name)
    assert formatted["prompt"] == [row["prompt"] for row in rows]
    assert formatted["scores"] == [row["scores"] for row in rows]


def test_the_data_card_counts_right(splits):
    card = (DATA / "README.md").read_text()
    for name, rows in splits.items():
        scores = [score for row in rows for score in row["scores"]]
        assert f"| {name} | {len(rows)} | {sum(scores) / len(scores):.3f} |" in card


def test_prefixes_are_cut_between_words(build_data):
    snippets = [f"{word} {TEXT}" for word in TEXT.split()] * 2
    tokenizer = tiny_tokenizer()
    prefixes = list(build_data.draw_prefixes(snippets, tokenizer))
    assert len(prefixes) == len({prefix.casefold() for prefix in prefixes}) > 10
    for prefix in prefixes:
        assert 2 <= len(tokenizer(prefix)["input_ids"]) <= 8
        assert any(snippet.startswith(prefix + " ") for snippet in snippets)
    assert list(build_data.draw_prefixes(snippets, tokenizer)) == prefixes


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"prompt": "a t", "completions": ["he", " a", " b", " c"]}, "completion merges with the prefix"),
        ({"completions": [" a", " \n", " b", " c"]}, "empty completion"),
        ({"completions": [" a", " caf\ufffd", " b", " c"]}, "cut character"),
        ({"completions": [" a", " b", " c", " a"]}, "identical completions"),
        ({"scores": [0.5] * 4}, "all scores equal"),
    ],
)
def test_unfit_rows(build_data, changes, reason):
    row = {"prompt": "the", "completions": [" a", " b", " c", " d"], "scores": [0.1, 0.1, 0.1, 0.2], **changes}
    assert build_data.problem(**row, tokenizer=tiny_tokenizer()) == reason


def word_tokenizer():
    """One token a word, so that whatever a random model writes is words, some of them VADER's."""
    vocabulary = {f"▁{word}": number for number, word in enumerate(sorted(set(TEXT.split())))}
    backend = Tokenizer(models.WordLevel({**vocabulary, "<eos>": len(vocabulary)}, unk_token="<eos>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>")


def test_building_twice_gives_the_same_bytes(build_data, tmp_path: Path):
    tokenizer = word_tokenizer()
    model = tiny_model(tokenizer)
    prompts = ["a great film", "awful jokes", "no plot", "bright colours"]
    files = []
    for attempt in ("first", "second"):
        rows, dropped = build_data.build_split("train", prompts, model, tokenizer, set())
        assert len(rows) + sum(dropped.values()) == len(prompts)
        build_data.write(rows, tmp_path / attempt)
        files.append((tmp_path / attempt).read_bytes())
    assert rows
    assert files[0] == files[1]


def test_a_completion_of_another_split_is_left_out(build_data):
    tokenizer = word_tokenizer()
    model = tiny_model(tokenizer)
    prompts = ["a great film", "awful jokes"]
    taken: set[str] = set()
    rows, _ = build_data.build_split("train", prompts, model, tokenizer, taken)
    assert taken == {completion for row in rows for completion in row["completions"]}
    again, dropped = build_data.build_split("train", prompts, model, tokenizer, {rows[0]["completions"][1]})
    assert again == rows[1:]
    assert dropped["completion of another split"] == 1
