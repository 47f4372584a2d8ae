"""Records are read in one place: what isn't as its schema says gives a sentence with the file and the field."""

import json
from typing import Annotated, Literal

import pytest
from pydantic import Field

from trl_dpo_ext.record import Record, RecordError, checked, read_record, write_json


class Point(Record):
    step: Annotated[int, Field(ge=0)]
    reward: float


class Frontier(Record):
    kind: Literal["a", "b"]
    points: list[Point]


GOOD = {"kind": "a", "points": [{"step": 0, "reward": 1.5}, {"step": 2, "reward": 2}], "added_later": True}


def test_a_good_record_is_read_with_its_types(tmp_path):
    write_json(tmp_path / "x.json", GOOD)
    found = read_record(tmp_path / "x.json", Frontier)
    assert [(point.step, point.reward) for point in found.points] == [(0, 1.5), (2, 2.0)]


def changed(**values):
    return json.dumps({**GOOD, **values})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "can't be read: it is not JSON (line 1: Expecting value)"),
        ('{"kind": "a",\n"poi', "can't be read: it is not JSON (line 2: Unterminated"),
        ("[1]", ": found a list, expected a mapping"),
        ("{}", ", kind is missing (and 1 more)"),
        (changed(kind="c"), ", kind: 'c' is not 'a' or 'b'"),
        (changed(points={}), ", points: {} is not a valid list"),
        (changed(points=[5]), ", points.0: found a int, expected a mapping"),
        (changed(points=[{"step": 1}]), ", points.0.reward is missing"),
        (changed(points=[{"step": -1, "reward": 0}]), ", points.0.step: -1 is not greater than or equal to 0"),
        (changed(points=[{"step": True, "reward": 0}]), ", points.0.step: True is not a valid integer"),
        (changed(points=[{"step": "1", "reward": 0}]), ", points.0.step: '1' is not a valid integer"),
        (changed(points=[{"step": 1, "reward": float("nan")}]), ", points.0.reward: nan is not a finite number"),
        ('{"kind": "a", "points": [{"step": 1, "reward": 1e999}]}', ", points.0.reward: inf is not a finite number"),
        (changed(points=[{"step": 1, "reward": "x" * 999}]), "... (1001 characters) is not a valid number"),
        ('{"kind": "a", "points": [], "kind": "b"}', "can't be read: the key 'kind' appears twice"),
        ('{"n": ' + "9" * 9999 + "}", "can't be read: "),
        ("[" * 100 + "]" * 100, "can't be read: it is nested deeper than 64 levels"),
        ("[" * 100000, "can't be read: it is nested deeper than 64 levels"),
        (changed(kind="\ud800"), "can't be read: it is not UTF-8 text"),
        (changed(**{"\udfff": 1}), "can't be read: it is not UTF-8 text"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_field(tmp_path, text, says):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(RecordError) as error:
        read_record(path, Frontier, advice="Do this.")
    message = str(error.value)
    assert message.startswith(str(path))
    assert says in message
    assert message.endswith(". Do this.")
    assert "\n" not in message
    assert len(message) < 500


def test_what_is_no_text_file_is_said_too(tmp_path):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{}")
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    for name, says in (("folder", "Is a directory"), ("bytes", "it is not UTF-8 text"), ("loop", "Too many levels")):
        with pytest.raises(RecordError, match=says):
            read_record(tmp_path / f"{name}.json", Frontier)
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "none.json", Frontier)


def test_a_room_gets_its_own_error():
    with pytest.raises(KeyError, match=r"x.json, files.a: '3' is not a valid integer"):
        checked({"files": {"a": "3"}}, dict[str, dict[str, int]], "x.json", KeyError)
