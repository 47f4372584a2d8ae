"""The model that log-ratios are measured against: which weights it is, and what is kept of it."""

from .cache import CacheError
from .identity import FingerprintError, ReferenceIdentity, ReferenceMismatchError, fingerprint

__all__ = ["CacheError", "FingerprintError", "ReferenceIdentity", "ReferenceMismatchError", "fingerprint"]
