"""TRL's config fields that set a loss's hyperparameter."""

from collections.abc import Mapping
from types import MappingProxyType

# Field of `trl.DPOConfig` -> TRL's default. A loss whose hyperparameter has the name of a field takes its value from
# that field; other names (IPO's `tau` for `beta`) are declared with `register_loss(trl_fields=...)`.
TRL_LOSS_FIELDS: Mapping[str, float] = MappingProxyType({"beta": 0.1, "label_smoothing": 0.0, "discopop_tau": 0.05})
