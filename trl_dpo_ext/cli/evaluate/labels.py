"""The words for verdicts in files of pairs."""

LABELS = {"first": 1.0, "second": 0.0, "tie": 0.5, None: None}
WORDS = {verdict: word for word, verdict in LABELS.items()}
