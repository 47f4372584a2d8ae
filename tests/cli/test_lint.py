"""`trl-dpo-ext lint`: exit codes, table, JSON, plot, files that can't be read, mistakes on the command line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from tests import helpers
from trl_dpo_ext.cli import main
from trl_dpo_ext.data import DataError, load_splits

datasets.disable_progress_bars()

TRAP_15 = {
    "train": [
        {"prompt": "a film", "chosen": " great", "rejected": " slow"},
        {"prompt": "b film", "chosen": " same", "rejected": " same"},
        {"prompt": "a film", "chosen": " great", "rejected": " slow"},
        {"prompt": "c film", "chosen": " slow", "rejected": " great"},
    ],
    "test": [
        {"prompt": "d film", "chosen": " x", "rejected": " y"},
        {"prompt": "c film", "chosen": " x", "rejected": " y"},
    ],
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(folder: Path, **splits: list[dict[str, Any]]) -> str:
    folder.mkdir(exist_ok=True)
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(["lint", *arguments])
    return code, *capsys.readouterr()


def as_json(capsys, *arguments: str) -> tuple[int, dict[str, Any]]:
    code, out, _ = run(capsys, *arguments, "--json", "-")
    return code, json.loads(out)


def test_the_table_names_rows_and_says_what_to_do(capsys, tmp_path):
    code, out, _ = run(capsys, write(tmp_path / "data", **TRAP_15))
    assert code == 1
    lines = [line.split() for line in out.splitlines()]
    assert lines[0][:3] == ["train:", "4", "rows;"]
    found = {tuple(line[:5]) for line in lines if line and line[0] in ("error", "warning", "info")}
    assert found == {
        ("error", "identical-responses", "train", "1", "1"),
        ("error", "prompt-in-train-and-test", "test", "1", "1"),
        ("warning", "duplicate-row", "train", "1", "2"),
    }
    advice = out.partition("What to do\n")[2].splitlines()
    assert [line.split()[0] for line in advice] == ["identical-responses", "prompt-in-train-and-test", "duplicate-row"]
    assert "Remove one of the two, or give both the same rank." in advice[0]


def test_json(capsys, tmp_path):
    data = write(tmp_path / "data", **TRAP_15)
    code, report = as_json(capsys, data)
    assert code == 1
    assert set(report) == {"dataset", "model", "max_length", "splits", "counts", "findings"}
    assert (report["dataset"], report["model"], report["max_length"]) == (data, None, None)
    assert report["counts"] == {"error": 2, "warning": 1, "info": 0}
    assert {name: split["rows"] for name, split in report["splits"].items()} == {"train": 4, "test": 2}
    lengths = report["splits"]["train"]["lengths"]
    assert set(lengths) == {
        *("unit", "prompts", "responses", "best_responses", "worst_responses", "best_minus_worst"),
    }
    assert lengths["best_responses"] == {
        "min": 5, "lower_quartile": 5.5, "median": 6, "upper_quartile": 6, "max": 6, "mean": pytest.approx(17 / 3)
    }  # fmt: skip
    for finding in report["findings"]:
        assert set(finding) == {"id", "severity", "split", "count", "rows", "twins", "note", "advice"}
        assert finding["advice"].endswith((".", ")."))
    leak = next(f for f in report["findings"] if f["id"] == "prompt-in-train-and-test")
    assert (leak["rows"], leak["twins"]) == ([1], [{"split": "train", "row": 3}])

    file = tmp_path / "report.json"
    code, out, _ = run(capsys, data, "--json", str(file))
    assert (code, json.loads(file.read_text())) == (1, report)
    assert "duplicate-row" in out
    assert [f.name for f in tmp_path.iterdir() if "report" in f.name] == ["report.json"]


@pytest.mark.parametrize(
    ("splits", "codes"),
    [
        ({"train": TRAP_15["train"][:1]}, (0, 0, 0)),
        ({"train": [TRAP_15["train"][i] for i in (0, 2)]}, (0, 1, 0)),  # a warning
        ({"train": TRAP_15["train"][:2]}, (1, 1, 0)),  # an error
    ],
    ids=["clean", "warning", "error"],
)
def test_exit_codes(capsys, tmp_path, splits, codes):
    data = write(tmp_path / "data", **splits)
    assert run(capsys, data)[0] == codes[0]
    for severity, code in zip(("error", "warning", "never"), codes, strict=True):
        assert run(capsys, data, "--fail-on", severity)[0] == code


def test_clean_data_say_so(capsys, tmp_path):
    code, out, _ = run(capsys, write(tmp_path / "data", train=TRAP_15["train"][:1]))
    assert code == 0
    assert out.splitlines()[-1] == "No findings."


def test_splits(capsys, tmp_path):
    data = write(tmp_path / "data", **TRAP_15)
    assert run(capsys, data, "--split", "test")[0] == 0
    _, report = as_json(capsys, data, "--split", "test", "--split", "train")
    assert set(report["splits"]) == {"test", "train"}
    code, out, err = run(capsys, data, "--split", "tset")
    assert (code, out) == (2, "")
    assert "has no split 'tset'. Did you mean 'test'? It has: train, test." in err


def test_tokens(capsys, tmp_path, tiny_model_dir):
    row = {"prompt": "the film", "chosen": " was slow and tender", "rejected": " was"}
    data = write(tmp_path / "data", train=[row])
    code, report = as_json(capsys, data, "--model", tiny_model_dir, "--max-length", "11")
    assert code == 0
    assert [f["id"] for f in report["findings"]] == ["truncated-response"]
    assert report["splits"]["train"]["lengths"]["unit"] == "tokens"
    assert (report["model"], report["max_length"]) == (tiny_model_dir, 11)
    # The model's generation config says what ends a response.
    model = tmp_path / "model"
    tokenizer = helpers.tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<pad>")
    tokenizer.save_pretrained(model)
    chat = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    chat = {column: [{"role": role, "content": f"{column} words"}] for column, role in chat.items()}
    data = write(tmp_path / "chat", train=[chat])
    assert [f["id"] for f in as_json(capsys, data, "--model", str(model))[1]["findings"]] == ["missing-eos"]
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, tokenizer.pad_token_id]}))
    assert as_json(capsys, data, "--model", str(model))[1]["findings"] == []


def test_a_converter(capsys, tmp_path):
    row = {
        "prompt": "\n\nHuman: film\n\nAssistant: ",
        "answers": [{"answer": "great", "rank": 1}, {"answer": "awful", "rank": 2}],
    }
    data = write(tmp_path / "data", train=[row])
    assert as_json(capsys, data)[1]["findings"][0]["id"] == "missing-columns"
    assert as_json(capsys, data, "--converter", "nectar")[1]["findings"] == []


def test_plot(capsys, tmp_path):
    data, plot = write(tmp_path / "data", **TRAP_15), tmp_path / "lengths.png"
    assert run(capsys, data, "--plot", str(plot))[0] == 1
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert [f.name for f in tmp_path.iterdir() if "lengths" in f.name] == ["lengths.png"]
    # Nothing to draw is an empty picture, not a traceback.
    broken = write(tmp_path / "broken", train=[{"text": "x"}])
    assert run(capsys, broken, "--plot", str(tmp_path / "none.svg"))[0] == 1


GOOD = b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
BROKEN: dict[str, tuple[str, bytes, str]] = {
    "not UTF-8": (
        "test.jsonl",
        GOOD * 2 + GOOD.replace(b"a", b"\xe9", 1),
        "line 3: byte 0xe9 at position 12 isn't UTF-8",
    ),
    "not UTF-8, an array": ("test.json", b"[\n" + GOOD.replace(b"b", b"\xff", 1) + b"]", "line 2: byte 0xff"),
    "cut off": ("test.jsonl", GOOD + GOOD[:20], "line 2: not JSON (Unterminated string starting at"),
    "array cut off": ("test.json", b"[\n" + GOOD.strip() + b",\n" + GOOD[:20], "line 3: not JSON (Unterminated string"),
    "no JSON": ("test.jsonl", b"hello\n", "line 1: not JSON (Expecting value at character 0)"),
    "no objects": ("test.jsonl", b"3\n4\n", "line 1: it holds 3, expected a JSON object"),
    "half a character": ("test.jsonl", GOOD + GOOD.replace(b'"b"', b'"\\ud83d"'), "line 2: it holds \\ud83d, half of"),
    "empty": ("test.jsonl", b"", "the file is empty"),
    "gzip cut off": ("test.jsonl.gz", gzip.compress(GOOD * 99)[:40], "the compressed file is damaged or cut off"),
    "no gzip": ("test.jsonl.gz", GOOD, "the compressed file is damaged or cut off"),
    "csv not UTF-8": ("test.csv", b"prompt,chosen,rejected\na,b,c\n\xe9,b,c\n", "line 3: byte 0xe9 at position 0"),
    "csv with too many fields": (
        "test.csv",
        b"prompt,chosen,rejected\na,b,c\na,b, and c,d\n",
        "line 3: 4 fields, but the",
    ),
    "no parquet": ("test.parquet", GOOD, "not a Parquet file, or a damaged one"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_cannot_be_read(capsys, tmp_path, case):
    name, content, sentence = BROKEN[case]
    folder = tmp_path / "data"
    folder.mkdir()
    file = folder / name
    file.write_bytes(content)
    code, report = as_json(capsys, str(file))
    (finding,) = report["findings"]
    assert (code, finding["id"], finding["severity"]) == (1, "unreadable-file", "error")
    assert str(file) in finding["note"]
    assert sentence in finding["note"]
    assert run(capsys, str(file), "--fail-on", "never")[0] == 0
    # In a folder, beside good ones.
    if not name.endswith(("csv", "parquet")):
        (folder / "train.jsonl").write_bytes(GOOD)
        with pytest.raises(DataError) as raised:
            load_splits(str(folder))
        assert str(file) in str(raised.value)
        assert sentence in str(raised.value)
        assert raised.value.__cause__ is not None


MISTAKES = {
    "nothing there": (["{tmp}/nothing.jsonl"], "is no folder or file here, and no Hub id"),
    "another kind": (["{tmp}/notes.txt"], "is not a .json, .jsonl, .csv, .parquet file"),
    "max_length alone": (
        ["{data}", "--max-length", "9"],
        "--max-length counts tokens, so it needs a tokenizer: add --model.",
    ),
    "no tokenizer": (["{data}", "--model", "{tmp}"], "its tokenizer can't be loaded"),
    "no folder for JSON": (["{data}", "--json", "{tmp}/no/x.json"], "/no does not exist"),
    "no folder for the plot": (["{data}", "--plot", "{tmp}/no/x.png"], "/no does not exist"),
    "no kind of picture": (["{data}", "--plot", "{tmp}/x.docx"], "can't write a 'docx' picture. Known: "),
    "no such converter": (["{data}", "--converter", "nectr"], "Did you mean 'nectar'?"),
    "no such split": (["{data}", "--split", "x"], "has no split 'x'"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(capsys, tmp_path, case):
    arguments, sentence = MISTAKES[case]
    (tmp_path / "notes.txt").write_text("x")
    data = write(tmp_path / "data", train=TRAP_15["train"])
    code, out, err = run(capsys, *(a.format(tmp=tmp_path, data=data) for a in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert sentence in err


@pytest.mark.parametrize("options", [["--max-length", "0"], ["--max-length", "x"], ["--fail-on", "info"], ["--splits"]])
def test_mistakes_that_argparse_finds(capsys, tmp_path, options):
    with pytest.raises(SystemExit) as exit_:
        main(["lint", write(tmp_path / "data", train=TRAP_15["train"]), *options])
    assert exit_.value.code == 2


def test_the_quickstart_data(capsys):
    """Of the demo's data, only short responses are worth a look: the README says they were not filtered."""
    code, report = as_json(capsys, str(helpers.ROOT / "recipes" / "quickstart" / "data"))
    assert code == 0
    assert {f["id"] for f in report["findings"]} == {"extreme-length"}


# Columns, one row as it is trained, the converted file

EXPORTS = helpers.ROOT / "tests" / "data" / "exports"


def test_it_says_which_form_it_recognised(capsys):
    file = str(EXPORTS / "choices.csv")
    _, out, _ = run(capsys, file)
    assert "read as two responses and a choice (prompt, answer_a, answer_b, winner)" in out
    _, report = as_json(capsys, file)
    assert report["splits"]["train"]["form"].startswith("two responses and a choice")


def test_columns_are_mapped_first(capsys):
    file = str(EXPORTS / "questions.csv")
    code, out, _ = run(capsys, file)
    assert code == 1
    assert "missing-columns" in out
    mapped = ("--columns", "question=prompt", "good=chosen", "bad=rejected", "best=")
    assert run(capsys, file, *mapped)[0] == 0
    code, _, err = run(capsys, file, "--columns", "qestion=prompt")
    assert code == 2
    assert "Did you mean 'question'" in err


def test_a_row_is_shown_as_it_is_trained(capsys, tmp_path):
    model = helpers.save_tiny_model(tmp_path / "model")
    rows = [{"prompt": "the film", "completions": [" was great", " was slow"], "labels": [True, False]}]
    folder = write(tmp_path / "data", train=rows)
    _, out, _ = run(capsys, folder, "--model", model, "--show", "0")
    shown = out[out.index("Row 0 of train, read as responses with labels") :].splitlines()
    assert shown[2] == "the film"
    assert shown[1].endswith("tokens, not scored:")
    assert shown[3].startswith("response 0, rank 0, desirable, ")
    assert shown[4].startswith("▶ was great")
    assert shown[4].endswith("◀")
    assert shown[5].startswith("response 1, rank 1, undesirable, ")
    for arguments, message in (
        (("--show", "0"), "needs a tokenizer"),
        (("--show", "7", "--model", model), "has the rows 0 to 0"),
    ):
        code, _, err = run(capsys, folder, *arguments)
        assert code == 2
        assert message in err


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_the_converted_rows_are_written_and_can_be_read_again(kind, capsys, tmp_path):
    target = tmp_path / f"converted.{kind}"
    code, _, err = run(capsys, str(EXPORTS / "label_studio_ranker.json"), "--output", str(target))
    assert code == 0
    assert f"Wrote 3 of 3 rows to {target}" in err
    rows = list(load_splits(str(target))["train"])
    assert rows[1]["completions"] == ["Cusco.", "Lima.", "I don't know."]
    assert rows[1]["ranks"] == [2, 0, 1]
    assert run(capsys, str(target))[0] == 0


def test_rows_of_several_forms_in_one_file_are_read_as_training_reads_them(capsys, tmp_path):
    rows = [
        {"prompt": "What is up?", "chosen": "this is it", "rejected": "that"},
        {"prompt": "What is down?", "completion": "this one", "label": False},
        {"prompt": "What is left?", "completions": ["this", "those", "that"], "ranks": [2, 0, 1]},
    ]
    target = tmp_path / "converted.jsonl"
    code, out, _ = run(capsys, write(tmp_path / "data", train=rows), "--output", str(target))
    assert code == 0
    assert "read as responses with labels" in out
    written = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["ranks"] for row in written] == [[0, 1], [0], [2, 0, 1]]
    assert [row["labels"] for row in written] == [[None, None], [False], [None] * 3]
    code, out, _ = run(capsys, write(tmp_path / "bad", train=[*rows, {"prompt": "q", "label": True}]))
    assert code == 1
    assert "rows with prompt, label" in " ".join(out.split())


def test_rows_that_cannot_be_read_are_counted_in_the_output(capsys, tmp_path):
    rows = [{"prompt": "q", "answer_a": "x", "answer_b": "y", "winner": w} for w in ("A", "?", "B")]
    target = tmp_path / "converted.jsonl"
    code, _, err = run(capsys, write(tmp_path / "data", train=rows), "--output", str(target))
    assert code == 1
    assert "Wrote 2 of 3 rows" in err
    assert "left out 1, which can't be read" in err
    code, _, err = run(capsys, write(tmp_path / "data", train=rows), "--output", str(tmp_path / "x.txt"))
    assert code == 2
    assert "name a .jsonl or a .parquet file" in err
