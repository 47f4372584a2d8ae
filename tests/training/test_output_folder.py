"""One run at a time in an output folder; checkpoints know their checksums."""

import os
import signal
import time

import pytest
from accelerate import PartialState

from tests.training import forks
from trl_dpo_ext.training import OutputFolderError
from trl_dpo_ext.training.safety import checkpoint_files, output_folder
from trl_dpo_ext.training.safety.output_folder import held, refuse_if_in_use


def test_a_second_run_is_refused_and_a_dead_one_is_not_in_the_way(tmp_path):
    folder = tmp_path / "out"
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        with held(folder):
            os.write(tell, b"x")
            time.sleep(60)
        os._exit(0)
    os.read(ready, 1)
    for use in (lambda: held(folder).__enter__(), lambda: refuse_if_in_use(folder)):
        with pytest.raises(OutputFolderError, match=rf"Another run is using .*out: process {child} on "):
            use()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (folder / ".in_use").exists()
    refuse_if_in_use(folder)
    with held(folder), held(folder):  # the trainer's, inside the recipe's
        assert (folder / ".in_use").exists()
    assert not (folder / ".in_use").exists()


def test_looking_does_not_create_the_folder(tmp_path):
    refuse_if_in_use(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputFolderError, match=r"file/out' can't be written: Not a directory"),
        held(tmp_path / "file" / "out"),
    ):
        pass


def test_both_ranks_are_refused(tmp_path):
    with held(tmp_path):

        def second(rank: int) -> None:
            output_folder._held.clear()  # inherited from the parent, which holds the lock
            PartialState(cpu=True)
            with pytest.raises(OutputFolderError, match="Another run is using"), held(tmp_path):
                pass

        assert forks.in_two_ranks(second) == [0, 0]


def test_a_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "optimizer.pt"
    path.write_bytes(bytes(range(256)) * 100)
    checkpoint_files.write_marker(tmp_path, True, None)
    assert checkpoint_files.why_damaged(tmp_path) is None
    content = bytearray(path.read_bytes())
    content[7000] ^= 4
    path.write_bytes(content)
    assert checkpoint_files.why_incomplete(tmp_path) is None
    assert checkpoint_files.why_damaged(tmp_path) == "optimizer.pt isn't what was written: its checksum differs"
