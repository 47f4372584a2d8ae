"""Two processes that differ in a setting, their data or their adapter: both stop with the same sentence; none waits."""

import pytest

from tests import helpers


@pytest.mark.slow
def test_processes_that_differ_stop_with_the_same_sentence(seconds, seed, tiny_model_dir, tmp_path, capsys):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    printed = helpers.run_python(
        *launcher, "tests/attack/two_ranks.py", tiny_model_dir, str(tmp_path), str(seed), str(seconds), timeout=1200
    )
    assert "rounds of two processes" in printed
    with capsys.disabled():
        print("\n" + next(line for line in printed.splitlines() if "rounds of two processes" in line))
