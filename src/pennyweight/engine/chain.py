"""The hash chain over batches: chain = H(previous, header, H(body) ...), SHA-256."""

import hashlib

import msgspec

from pennyweight.engine.port import BatchHeader

_encoder = msgspec.json.Encoder()


def next_chain(previous: bytes, header: BatchHeader, bodies: list[bytes]) -> bytes:
    """Return the chain after a batch; the header counts as its JSON array without spaces."""
    sha256 = hashlib.sha256
    digests = b"".join([sha256(body).digest() for body in bodies])
    return sha256(previous + _encoder.encode(header) + digests).digest()
