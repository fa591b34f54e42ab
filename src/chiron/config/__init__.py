"""Configuration: frozen dataclasses filled from TOML, the environment and the command line."""

from chiron.config.loader import ConfigError, load_config, override_variable

__all__ = ["ConfigError", "load_config", "override_variable"]
