"""Where `Zstd` has always been imported from."""

from orchestrator_state.payloads import Zstd

__all__ = ["Zstd"]
