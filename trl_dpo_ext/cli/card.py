"""`trl-dpo-ext card`: writes a run's model card again."""

from __future__ import annotations

import argparse

from ._console import Commands


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("card", help="write the model card of a finished run again, from its files")
    command.add_argument("folder", help="folder of a finished run, or of a merged model")
    command.add_argument("--repo", metavar="OWNER/NAME", help="the repository on the Hub, for the code that loads it")
    command.add_argument(
        "--base-model", metavar="ID", help="the base model's Hub id, if the run was trained from a local path"
    )
    command.add_argument("--base-revision", metavar="REVISION", help="commit, tag or branch of the base model")
    command.set_defaults(run=_card)


def _card(arguments: argparse.Namespace) -> int:
    from ..hub import write_card

    write_card(
        arguments.folder,
        repo=arguments.repo,
        base_model=arguments.base_model,
        base_revision=arguments.base_revision,
    )
    print(f"Written: {arguments.folder}/README.md")
    return 0
