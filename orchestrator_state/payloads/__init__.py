"""A value and its stored text, both ways."""

from orchestrator_state.payloads.blobs.names import REFERENCE_MARKER, BlobName, Reference
from orchestrator_state.payloads.blobs.offload import MoveFirst, Offload
from orchestrator_state.payloads.blobs.store import BlobStore
from orchestrator_state.payloads.canonical import copied, decode, decode_long, encode
from orchestrator_state.payloads.codecs.chain import ENVELOPE_MARKER, Codec, is_encoded, tags_of
from orchestrator_state.payloads.codecs.compression import Zstd
from orchestrator_state.payloads.codecs.encryption import AesGcm, KeyRing, new_key
from orchestrator_state.payloads.context_dict import ContextDict, Touch
from orchestrator_state.payloads.digests import check_digest
from orchestrator_state.payloads.limits import MOST, Limits
from orchestrator_state.payloads.sealing import PLAIN, Payloads, Sealed
from orchestrator_state.payloads.texts import LONGEST_NAME, check_text, flaw_of, is_unicode, text_of
from orchestrator_state.payloads.typed.fitting import require_schema
from orchestrator_state.payloads.typed.values import NotAccepted, ValueType, decode_value

__all__ = [
    "ENVELOPE_MARKER",
    "LONGEST_NAME",
    "MOST",
    "PLAIN",
    "REFERENCE_MARKER",
    "AesGcm",
    "BlobName",
    "BlobStore",
    "Codec",
    "ContextDict",
    "KeyRing",
    "Limits",
    "MoveFirst",
    "NotAccepted",
    "Offload",
    "Payloads",
    "Reference",
    "Sealed",
    "Touch",
    "ValueType",
    "Zstd",
    "check_digest",
    "check_text",
    "copied",
    "decode",
    "decode_long",
    "decode_value",
    "encode",
    "flaw_of",
    "is_encoded",
    "is_unicode",
    "new_key",
    "require_schema",
    "tags_of",
    "text_of",
]
