"""Where `AesGcm` and its keys have always been imported from."""

from orchestrator_state.payloads import AesGcm, KeyRing, new_key

__all__ = ["AesGcm", "KeyRing", "new_key"]
