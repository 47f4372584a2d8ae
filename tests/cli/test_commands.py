"""The command line as a whole: which commands there are, their help, and how each of them ends."""

import ast
import importlib
import subprocess
import sys
import warnings

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from tests.helpers import ROOT
from trl_dpo_ext import __version__, cli
from trl_dpo_ext.cli import main, make_parser
from trl_dpo_ext.cli._errors import exit_code
from trl_dpo_ext.run import FAILURES, USER_ERRORS
from trl_dpo_ext.training import ConfigError, TrainingError

# What the package raises when its own code, or code that calls it from Python, is wrong: these keep their traceback.
PROGRAMMING_ERRORS = {"FingerprintError", "MissingInputError", "MissingReferenceError", "UnsupportedAttentionError"}


@pytest.mark.parametrize(
    "arguments",
    [[], ["lossess"], ["losses", "--listwise", "--pairwise"], ["losses", "--reads", "x"], ["card", ".", "--nothing"]],
)
def test_mistakes_on_the_command_line_exit_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.strip() == __version__


def test_python_m_is_the_command():
    command = [sys.executable, "-m", "trl_dpo_ext", "losses", "nothing_like_it"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: Unknown loss 'nothing_like_it'.")
    assert len(done.stderr.splitlines()) == 1


def test_the_command_line_loads_nothing_heavy_for_its_help():
    loaded = "print([m for m in ('torch', 'rich', 'trl') if m in sys.modules])"
    code = f"import sys, trl_dpo_ext.cli as c; c.make_parser().format_help(); {loaded}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_new_command_is_one_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "greet.py").write_text(
        "def add(commands):\n"
        "    command = commands.add_parser('greet', help='say hello')\n"
        "    command.add_argument('name')\n"
        "    command.set_defaults(run=lambda arguments: print('hello', arguments.name) or 3)\n"
    )
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])
    assert main(["greet", "you"]) == 3
    assert capsys.readouterr().out == "hello you\n"
    assert "say hello" in make_parser().format_help()


def test_the_help_lists_every_command_in_alphabetical_order():
    lines = make_parser().format_help().partition("COMMAND\n")[2].splitlines()
    listed = [line.split()[0] for line in lines if line.startswith("    ") and not line.startswith("     ")]
    assert listed == sorted(listed)
    assert {"card", "eval", "lint", "losses", "memory", "merge", "push", "train"} <= set(listed)


def ends_with(error: BaseException, **options) -> int:
    def run() -> int:
        raise error

    return exit_code(run, **options)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("beta is negative"), 2),
        (FileNotFoundError("no such file"), 2),
        (ValueError("not a number"), 2),
        (ImportError("pip install it"), 2),
        (TrainingError("the loss is NaN"), 1),
    ],
)
def test_an_error_is_a_sentence_and_a_code(error, code, capsys):
    assert ends_with(error) == code
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(KeyError):
        ends_with(KeyError("x"))
    with pytest.raises(ValueError, match="x"):
        ends_with(ValueError("x"), expected=())
    assert ends_with(ConfigError("x"), expected=()) == 2


def test_torchrun_shows_the_sentence_below_its_own_traceback(tmp_path, monkeypatch):
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    assert ends_with(ConfigError("beta is negative")) == 2
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(file))
    assert "error: beta is negative" in ChildFailedError("train.py", {0: failure}).format_msg()


def test_ctrl_c_is_a_sentence_in_every_command(monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("trl_dpo_ext.losses.list_losses", interrupt)
    assert main(["losses"]) == 130
    assert capsys.readouterr().err.strip() == "error: interrupted."


def exceptions_of_the_package():
    """Yield every public exception class that a file of the package defines."""
    for path in sorted((ROOT / "trl_dpo_ext").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Error") and not node.name.startswith("_"):
                module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    yield getattr(importlib.import_module(module), node.name)


def test_every_error_that_a_user_can_cause_is_listed():
    found = list(exceptions_of_the_package())
    assert len(found) > 20
    unlisted = [e.__name__ for e in found if not issubclass(e, USER_ERRORS) and e.__name__ not in PROGRAMMING_ERRORS]
    assert not unlisted, f"{unlisted}: list them in trl_dpo_ext/run/user_errors.py, or here as programming errors"
    assert set(FAILURES) <= set(USER_ERRORS)
