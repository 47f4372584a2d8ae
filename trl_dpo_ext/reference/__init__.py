"""The model that log-ratios are measured against: its identity and its stored log-probs."""

from .reference_cache import CacheError
from .reference_identity import ReferenceIdentity, ReferenceMismatchError
from .weights_fingerprint import FingerprintError, fingerprint

__all__ = ["CacheError", "FingerprintError", "ReferenceIdentity", "ReferenceMismatchError", "fingerprint"]
