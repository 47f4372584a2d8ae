"""Data files of every form, and good ones with bytes changed: each is read, or refused in a sentence. None crashes.

The reader runs in a child process, since one that crashes would end the tests. `ATTACK_SECONDS` sets how long it runs.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.helpers import pair_rows, ranked_rows
from trl_dpo_ext.data import DataError, FaultReason, load_splits

SECONDS = float(os.environ.get("ATTACK_SECONDS", "15"))
ROW = {"prompt": "What?", "chosen": "This.", "rejected": "That."}
LINE = json.dumps(ROW)
DEEP = '{"a":' * 20_000 + "1" + "}" * 20_000


def in_a_child(read: Callable[[], str]) -> str:
    """Return what `read` returns in a forked process, or how the process ended."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(send, read().encode(errors="backslashreplace")[:60_000])
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive, errors="replace") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return f"ended by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else said


def outcome(path: str, streaming: bool = False) -> str:
    """Read a dataset; return "accepted: ROWS", "refused: SENTENCE", or a traceback."""
    try:
        splits = load_splits(path, streaming=streaming)
        rows = {name: list(split.take(3)) if streaming else split.to_list() for name, split in splits.items()}
    except (DataError, FileNotFoundError) as error:
        return f"refused: {error}"
    except BaseException:
        return f"raw: {traceback.format_exc()}"
    return f"accepted: {json.dumps(rows, default=str)}"


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


REFUSED = {
    "null first": ("x.jsonl", f"null\n{LINE}\n", "line 1: it holds null"),
    "null alone": ("x.jsonl", "null", "line 1: it holds null"),
    "null in the middle": ("x.jsonl", f"{LINE}\nnull\n{LINE}", "line 2: it holds null"),
    "null after blanks": ("x.jsonl", f"\n \t\nnull\n{LINE}", "line 3: it holds null"),
    "null after a byte-order mark": ("x.jsonl", b"\xef\xbb\xbfnull\n" + LINE.encode(), "line 1: it holds null"),
    "null after a carriage return": ("x.jsonl", f"{LINE}\rnull\r{LINE}\r", "line 1"),
    "null in an array": ("x.json", f"[null, {LINE}]", "row 0: it holds null"),
    "null, compressed": ("x.jsonl.gz", gzip.compress(f"null\n{LINE}".encode()), "line 1: it holds null"),
    "null in a folder": ("data/train.jsonl", f"null\n{LINE}", "train.jsonl, line 1: it holds null"),
    "objects 20,000 levels deep": ("x.jsonl", DEEP, "nested"),
    "deep in the second line": ("x.jsonl", f"{LINE}\n{DEEP}", "nested"),
    "a list 20,000 levels deep": ("x.jsonl", f'{{"prompt": {"[" * 20_000}{"]" * 20_000}}}', "nested"),
    "an array 20,000 levels deep": ("x.json", "[" * 20_000, "nested"),
    "a number": ("x.jsonl", f"1\n{LINE}", "line 1: it holds 1"),
    "text": ("x.jsonl", f'"x"\n{LINE}', "line 1: it holds"),
    "a list": ("x.jsonl", f"{LINE}\n[]", "line 2: it holds []"),
    "an empty list": ("x.jsonl", "[]", "no row"),
    "an empty object": ("x.jsonl", "{}", "no row"),
    "nothing": ("x.jsonl", "", "empty"),
    "blanks": ("x.jsonl", "\n\n", "no row"),
    "NUL bytes": ("x.jsonl", f"\0\0\n{LINE}", "line 1"),
    "UTF-16": ("x.jsonl", LINE.encode("utf-16"), "UTF-16"),
    "CSV in UTF-16": ("x.csv", "prompt,chosen,rejected\na,b,c\n".encode("utf-16"), "UTF-16"),
    "Parquet, compressed, as JSON": ("x.jsonl.gz", gzip.compress(b"PAR1"), "line 1"),
    "no gzip": ("x.jsonl.gz", LINE, "damaged or cut off"),
    "gzip cut off": ("x.jsonl.gz", gzip.compress(LINE.encode() * 99)[:-9], "damaged or cut off"),
    "gzip under another name": ("x.jsonl", gzip.compress(b"null"), "line 1"),
    "a column twice": ("x.csv", "prompt,prompt,rejected\na,b,c\n", "'prompt' occurs twice"),
    "a key twice": ("x.jsonl", '{"prompt": "a", "prompt": "b"}', "twice"),
    "a quote that doesn't end": ("x.csv", 'prompt,chosen\n"a,b\n', "x.csv"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_broken_file_is_refused_by_name(case, streaming, tmp_path):
    name, content, said = REFUSED[case]
    path = write(tmp_path / name, content)
    found = in_a_child(lambda: outcome(str(path.parent if "/" in name else path), streaming))
    if found == 'accepted: {"train": []}':  # a stream knows only at its first row that there is none
        assert streaming
        return
    assert found.startswith("refused: "), found
    assert said in found
    assert path.name in found


@pytest.mark.parametrize(
    "name",
    ["data[1].jsonl", "[v2]/x.jsonl", "x*.jsonl", "x?.jsonl", "a b/x y.jsonl", "a%20b/x.jsonl", "ünï/日本.jsonl"],
)
@pytest.mark.parametrize("form", ["absolute", "relative", "folder"])
def test_a_path_is_itself_and_no_pattern(name, form, tmp_path, monkeypatch):
    others = ("data1.jsonl", "v/x.jsonl", "2/x.jsonl", "xy.jsonl")
    for other in others:
        write(tmp_path / other, LINE.replace("This", "WRONG"))
    path = write(tmp_path / ("own" if form == "folder" else "") / name, LINE)
    monkeypatch.chdir(path.parent if form == "relative" else tmp_path)
    given = {"absolute": str(path), "relative": path.name, "folder": str(path.parent)}[form]
    for streaming in (False, True):
        assert in_a_child(partial(outcome, given, streaming)) == f"accepted: {json.dumps({'train': [ROW]})}"


def test_a_relative_folder_below_a_bracket_is_read(tmp_path, monkeypatch):
    write(tmp_path / "[v2]/data/train.jsonl", LINE)
    write(tmp_path / "[v2]/data/test.jsonl", LINE)
    monkeypatch.chdir(tmp_path / "[v2]")
    assert set(load_splits("data")) == {"train", "test"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("x" * 5000, "too long"),
        ("a\0b", "no folder or file"),
        ("loop.jsonl", "no folder or file"),
        ("file:///tmp/x.jsonl", "no folder or file"),
        ("http://127.0.0.1:9/x.jsonl", "no folder or file"),
        ("zip://x.jsonl::a.zip", "no folder or file"),
        ("x::y.jsonl", "Rename it"),
        ("folder.jsonl", "data files"),
        ("~nobody/x.jsonl", ""),
    ],
)
def test_a_name_that_is_no_dataset_is_refused(name, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    write(tmp_path / "x::y.jsonl", LINE)
    found = outcome(name)
    assert found.startswith("refused: "), found
    assert said in found


def test_a_folder_that_contains_itself_is_read(tmp_path):
    write(tmp_path / "train.jsonl", LINE)
    (tmp_path / "again").symlink_to(tmp_path)
    assert in_a_child(lambda: outcome(str(tmp_path))) == f"accepted: {json.dumps({'train': [ROW]})}"


def good_file(random: random.Random) -> tuple[str, bytes]:
    rows = random.choice([pair_rows, ranked_rows])(random.randint(1, 5), seed=random.randrange(99))
    lines = "\n".join(map(json.dumps, rows)).encode()
    array = json.dumps(rows, indent=random.choice([None, 1])).encode()
    csv = "prompt,chosen,rejected\n" + "\n".join(f'"p{i}",c{i},r{i}' for i in range(3))
    return random.choice(
        [("x.jsonl", lines), ("x.json", array), ("x.jsonl.gz", gzip.compress(lines)), ("x.csv", csv.encode())]
    )


TOKENS = [
    b"null",
    b"\n",
    b"\r",
    b"\0",
    b"[",
    b"]",
    b"{",
    b"}",
    b'"',
    b",",
    b"\\ud800",
    b"\xff",
    b"NaN",
    b"1e999",
    b"true",
]
TOKENS += [b"\nnull\n", b"\xef\xbb\xbf", b'{"prompt":', b"[" * 300, b'{"a":' * 300, b"9" * 50, b"\\", b"1e999"]


def changed(content: bytes, random: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random.randint(1, 4)):
        at = random.randint(0, len(changed))
        kind = random.randrange(5)
        if kind == 0:
            changed[at:at] = random.choice(TOKENS)
        elif kind == 1:
            changed[at : at + random.randint(1, 9)] = b""
        elif kind == 2 and at < len(changed):
            changed[at] ^= 1 << random.randrange(8)
        elif kind == 3:
            changed[at : at + random.randint(0, 9)] = random.choice(TOKENS)
        else:
            del changed[at:]
    return bytes(changed)


def test_changed_bytes_are_read_or_refused(tmp_path):
    random_ = random.Random(15)
    ends = time.monotonic() + SECONDS
    counts: Counter[str] = Counter()
    while time.monotonic() < ends:
        # One child for many files: it stops at the first that isn't read or refused, and its end names the file.
        batch = []
        for _ in range(20):
            name, content = good_file(random_)
            number = sum(counts.values()) + len(batch)
            batch.append(write(tmp_path / f"{number}" / name, changed(content, random_)))

        def read(batch: list[Path] = batch) -> str:
            return "\n".join(f"{path}\t{outcome(str(path))}".replace("\n", " ")[:2500] for path in batch)

        said = in_a_child(read)
        if said.startswith("ended by"):
            crashed = [path for path in batch if in_a_child(lambda path=path: outcome(str(path))).startswith("ended")]
            pytest.fail(f"{said}: {[(path.name, path.read_bytes()[:500]) for path in crashed]}")
        for line in said.splitlines():
            path, _, found = line.partition("\t")
            assert not found.startswith("raw"), f"{Path(path).read_bytes()!r}: {found}"
            counts[found.split(":")[0]] += 1
    print(f"files with changed bytes: {dict(counts)}, none raw")
    assert counts["refused"]
    assert counts["accepted"]


def test_lint_reports_a_crashing_file_as_a_finding(tmp_path, capsys):
    from trl_dpo_ext.cli import main

    path = write(tmp_path / "x.jsonl", f"null\n{LINE}")
    assert main(["lint", str(path), "--json", "-"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert finding["id"] == FaultReason.UNREADABLE_FILE.check_id
