"""The model that log-ratios are measured against: which weights it is, and what is kept of it."""

from .identity import FingerprintError, ReferenceIdentity, ReferenceMismatchError, fingerprint

__all__ = ["FingerprintError", "ReferenceIdentity", "ReferenceMismatchError", "fingerprint"]
