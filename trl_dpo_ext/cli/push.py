"""`trl-dpo-ext push`: pushes a finished run to the Hub."""

from __future__ import annotations

import argparse

from ._console import Commands


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("push", help="push a run's adapter, tokenizer, record and card to the Hub")
    command.add_argument("folder", help="folder of a finished run, or of a merged model")
    command.add_argument("repo", help="owner/name on the Hub; created if missing")
    command.add_argument("--private", action="store_true", default=None, help="make the repository private")
    command.add_argument("--revision", metavar="BRANCH", help="branch to commit to; created if missing")
    command.add_argument(
        "--base-model", metavar="ID", help="the base model's Hub id, if the run was trained from a local path"
    )
    command.add_argument("--base-revision", metavar="REVISION", help="commit, tag or branch of the base model")
    command.set_defaults(run=_push)


def _push(arguments: argparse.Namespace) -> int:
    from ..hub import push_run

    address = push_run(
        arguments.folder,
        arguments.repo,
        private=arguments.private,
        revision=arguments.revision,
        base_model=arguments.base_model,
        base_revision=arguments.base_revision,
    )
    print(f"Pushed: {address}")
    return 0
