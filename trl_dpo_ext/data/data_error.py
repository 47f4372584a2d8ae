"""The errors for data that can't be trained on, and the reasons they give, each with its advice."""

from __future__ import annotations

from enum import Enum


class FaultReason(Enum):
    """Why data can't be trained on.

    A new reason is one line here and one row in docs/lint.md; training and the linter need nothing else.

    Attributes:
        label: the reason in a few words, as messages count it.
        advice: what to do about it.
    """

    MISSING_COLUMNS = ("missing columns", "Rename or add columns so that they match one of the accepted forms.")
    TWO_FORMS = ("two forms", "Keep either chosen and rejected, or completions.")
    NO_ROWS = ("no rows", "Choose another split, or fill this one.")
    UNREADABLE_FILE = (
        "unreadable file",
        "Correct the file at the place that the message names. Text must be UTF-8; `iconv` converts other encodings.",
    )
    UNREADABLE_ROW = ("unreadable row", "Correct the row, or choose the converter that fits the dataset.")
    IMAGES = ("images", "Train on images with TRL's DPOTrainer, or remove them.")
    WRONG_TYPE = (
        "wrong type",
        "Give texts as strings or message lists, ranks and scores as lists of numbers, labels as true or false.",
    )
    MIXED_TYPES = ("mixed types", "Write all prompts and responses as strings, or all as message lists.")
    FEWER_THAN_TWO_RESPONSES = (
        "fewer than two responses",
        "Give each prompt two or more responses, use a loss that reads single ones, or remove the row.",
    )
    EMPTY_PROMPT = ("empty prompt", "Fill in the prompt, or remove the row.")
    EMPTY_RESPONSE = ("empty response", "Remove the response (a prompt needs two), or the row.")
    WRONG_ROLE = ("wrong role", "Start each response with the assistant's message; the prompt holds what comes before.")
    IDENTICAL_RESPONSES = ("identical responses", "Remove one of the two, or give both the same rank.")
    LENGTH_MISMATCH = ("length mismatch", "Give one rank (or score) per response.")
    NAN_OR_INFINITY = ("NaN or infinity", "Give finite ranks and scores, or remove the row.")
    RANK_NOT_AN_INTEGER = (
        "rank not an integer",
        "Number ranks 0 (best), 1, 2, ...; tied responses share a rank. Put quality ratings in scores.",
    )
    NEGATIVE_RANK = ("negative rank", "Number ranks 0 (best), 1, 2, ...")
    LABELS_AND_ORDER_DISAGREE = (
        "labels and order disagree",
        "No undesirable response is better than a desirable one: correct or remove one column.",
    )
    UNCLEAR_CHOICE = (
        "unclear choice",
        "Write which response is better as its column's name, as A or B, or as tie.",
    )
    NO_ANSWER = ("no answer", "Leave the row out, or wait until somebody has judged it.")
    ANSWERS_DISAGREE = ("answers disagree", "Keep one person's answer for each row, or their average as scores.")
    RANKS_AND_SCORES_DISAGREE = (
        "ranks and scores disagree",
        "Rank 0 is the best, and a higher score is better: correct or remove one column.",
    )
    ORDER_NOT_READ = (
        "order not read",
        "Rename the column to scores (higher is better) or ranks (0 = best), or remove it.",
    )
    ALL_TIED = (
        "all tied",
        "Remove the row, or use a loss that reads ties (`trl-dpo-ext losses --reads ties` lists them).",
    )
    CANNOT_TOKENIZE = (
        "cannot tokenize",
        "Use roles that the model's chat template accepts, in the order that it accepts, or another template.",
    )
    TEXT_LEFT_OUT = (
        "text left out",
        "Use a chat template that prints it (its training variant, if there is one), or remove it from the row: the "
        "model would be trained without it.",
    )
    OTHER = ("unusable data", "Follow the message; it says what is wrong.")

    def __init__(self, label: str, advice: str) -> None:
        self.label, self.advice = label, advice

    @property
    def check_id(self) -> str:
        """The id of the linter's finding.

        Example:
            >>> FaultReason.NAN_OR_INFINITY.check_id
            'nan-or-infinity'
        """
        return self.label.lower().replace(" ", "-")


class DataError(ValueError):
    """Data that can't be trained on. The message names dataset, row, column, what was found and what is expected.

    Attributes:
        reason: the kind of fault, which also holds the advice.
    """

    def __init__(self, message: str, reason: FaultReason = FaultReason.OTHER) -> None:
        super().__init__(message)
        self.reason = reason


class ColumnFault(Exception):
    """A fault in one column, raised where dataset and row aren't known; `to_ranked` turns it into a `DataError`.

    Attributes:
        column: the column at fault.
        reason: the kind of fault.
        detail: a sentence: what was found, what is expected.
    """

    def __init__(self, column: str, reason: FaultReason, detail: str) -> None:
        super().__init__(detail)
        self.column, self.reason, self.detail = column, reason, detail


def shorten(value: object) -> str:
    """Return a value's repr, cut to 60 characters, for messages.

    Example:
        >>> shorten("x" * 100)
        "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..."
    """
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
