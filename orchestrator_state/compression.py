"""Where `Zstd` has always been imported from."""

from orchestrator_state.payloads.compression import Zstd

__all__ = ["Zstd"]
