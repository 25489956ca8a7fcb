"""Content-addressed artifacts by digest. Knows bytes, not what they mean."""

from controller.blobs.blobs import Blobs, BlobWriter

__all__ = ["BlobWriter", "Blobs"]
