"""Compression of payloads, by Zstandard (RFC 8878).

Put it before an encryption in the chain: what is encrypted does not shrink any more.
"""

from __future__ import annotations

import sys
from typing import Final

from orchestrator_state.errors import ConfigurationError, CorruptPayload, MissingExtra, PayloadTooLarge

# As much as the largest snapshot may have.
MAX_DECOMPRESSED_BYTES: Final = 256 * 1024 * 1024
# What is encoded is stored as base64, which adds a third.
_WORTH_IT: Final = 3 / 4


class Zstd:
    """A codec that compresses payloads of `threshold` bytes or more, where that makes the stored text shorter.

    `max_bytes` bounds what a payload may decompress to: a small one can be made to stand for gigabytes. A payload that
    is longer is stored without compression. Needs the extra `zstd` before Python 3.14, and raises `MissingExtra`
    without it.
    """

    tag: Final = "zstd"

    def __init__(self, level: int = 3, threshold: int = 1024, *, max_bytes: int = MAX_DECOMPRESSED_BYTES) -> None:
        try:
            if sys.version_info >= (3, 14):
                from compression import zstd
            else:
                from backports import zstd
        except ImportError as error:
            message = "Zstd needs a library: pip install 'orchestrator-state[zstd]'"
            raise MissingExtra(message, extra="zstd") from error
        if not all(type(given) is int for given in (level, threshold, max_bytes)):
            raise ConfigurationError("level, threshold and max_bytes must be whole numbers")
        lowest, highest = zstd.CompressionParameter.compression_level.bounds()
        if not lowest <= level <= highest:
            raise ConfigurationError(f"level must be from {lowest} to {highest}")
        if threshold < 1 or max_bytes < 1:
            raise ConfigurationError("threshold and max_bytes must be at least 1")
        self._compress = zstd.compress
        self._decompressor = zstd.ZstdDecompressor
        self._error = zstd.ZstdError
        self._level = level
        self._threshold = threshold
        self._max_bytes = max_bytes

    def __repr__(self) -> str:
        return f"Zstd(level={self._level}, threshold={self._threshold}, max_bytes={self._max_bytes})"

    def encode(self, data: bytes, identity: bytes) -> bytes | None:
        if not self._threshold <= len(data) <= self._max_bytes:
            return None
        compressed = self._compress(data, self._level)
        return compressed if len(compressed) < len(data) * _WORTH_IT else None

    def decode(self, data: bytes, identity: bytes, parameter: str) -> bytes:
        """Return what `data` was compressed from. Raises `CorruptPayload`, or `PayloadTooLarge` over the limit.

        The limit holds on the way: memory for more than that is never asked for, whatever `data` claims to hold.
        """
        return self.decode_up_to(data, self._max_bytes)

    def decode_up_to(self, data: bytes, max_bytes: int) -> bytes:
        """Like `decode`, for a payload that may not be longer than `max_bytes` whatever the codec allows."""
        most = min(max_bytes, self._max_bytes)
        decompressor = self._decompressor()
        try:
            decompressed = decompressor.decompress(data, most + 1)
        except self._error:
            raise CorruptPayload("it is not valid Zstandard data") from None
        if len(decompressed) > most:
            raise PayloadTooLarge(
                f"it decompresses to more than {most} bytes",
                expected=most,
                found=len(decompressed),
            )
        if not decompressor.eof or decompressor.unused_data:
            raise CorruptPayload("it is not one whole frame of Zstandard data")
        return decompressed
