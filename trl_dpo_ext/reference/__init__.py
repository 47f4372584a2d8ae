"""The model that log-ratios are measured against: which weights it is, and what is kept of it."""

from .reference_cache import CacheError
from .reference_identity import FingerprintError, ReferenceIdentity, ReferenceMismatchError, fingerprint

__all__ = ["CacheError", "FingerprintError", "ReferenceIdentity", "ReferenceMismatchError", "fingerprint"]
