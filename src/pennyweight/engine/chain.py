"""The hash chain over batches: chain = H(previous, header, H(body) ...), SHA-256."""

import hashlib

import msgspec

from pennyweight.engine.port import BatchHeader

_encoder = msgspec.json.Encoder()


def next_chain(previous: bytes, header: BatchHeader, bodies: list[bytes]) -> bytes:
    """Return the chain after a batch. The header counts as its JSON array without spaces."""
    sha256 = hashlib.sha256
    digest = sha256(previous)
    digest.update(sha256(_encoder.encode(header)).digest())
    digest.update(b"".join([sha256(body).digest() for body in bodies]))
    return digest.digest()
