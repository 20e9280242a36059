"""ElasWave: distributed training that survives kill -9, bit for bit.

The public names are re-exported lazily, so that planning and reporting start without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elaswave.config import Config
    from elaswave.config import load as load_config
    from elaswave.errors import ElasWaveError, PeerLost
    from elaswave.models.spec import LayerSpec
    from elaswave.runtime.attempt import Attempt
    from elaswave.runtime.job import Job
    from elaswave.session import join

__version__ = "0.1.0"

_HOMES = {
    "Attempt": ("elaswave.runtime.attempt", "Attempt"),
    "Config": ("elaswave.config", "Config"),
    "ElasWaveError": ("elaswave.errors", "ElasWaveError"),
    "Job": ("elaswave.runtime.job", "Job"),
    "LayerSpec": ("elaswave.models.spec", "LayerSpec"),
    "PeerLost": ("elaswave.errors", "PeerLost"),
    "join": ("elaswave.session", "join"),
    "load_config": ("elaswave.config", "load"),
}

__all__ = ["Attempt", "Config", "ElasWaveError", "Job", "LayerSpec", "PeerLost", "__version__", "join", "load_config"]


def __getattr__(name: str) -> Any:
    try:
        module, attribute = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module 'elaswave' has no attribute {name!r}") from None
    return getattr(import_module(module), attribute)
