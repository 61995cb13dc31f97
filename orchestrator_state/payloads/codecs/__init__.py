"""Bytes to bytes and back: the chain that a store is opened with, and the codecs that come with the package."""
