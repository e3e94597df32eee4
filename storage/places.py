"""Where the project keeps what is not given a place: caches and the operator's own files."""

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """$ECO_CACHE_DIR, or $XDG_CACHE_HOME/eco-gateway, or ~/.cache/eco-gateway."""
    if own := os.environ.get("ECO_CACHE_DIR"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eco-gateway"


def config_dir() -> Path:
    """$XDG_CONFIG_HOME/eco-gateway, or ~/.config/eco-gateway."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "eco-gateway"
