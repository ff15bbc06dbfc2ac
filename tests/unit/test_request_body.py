"""Unpacking a request's body: what real senders pack, and what is packed to keep Baton busy."""

from __future__ import annotations

import gzip
import zlib

import pytest

from services.contracts.problems import Defect
from services.stage_service.api.request_body import BODY_BYTES_MAX, unpacked

RAW = zlib.compressobj(wbits=-15)
NOTHING_DEFLATED = RAW.compress(b"") + RAW.flush()


@pytest.mark.parametrize("members", [1, 2, 8])
def test_gzip_members_that_follow_one_another_are_one_body(members: int) -> None:
    """RFC 1952, 2.2."""
    assert unpacked(gzip.compress(b"[1]") * members, b"gzip") == b"[1]" * members


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        (b"gzip", gzip.compress(b"") * (BODY_BYTES_MAX // 20)),
        (b"deflate", NOTHING_DEFLATED * (BODY_BYTES_MAX // 2)),
        (b"deflate", zlib.compress(b"{}") * 2),
        (b"gzip", gzip.compress(b"{}") + b"\x00trailing"),
    ],
    ids=["empty gzip members", "empty deflate streams", "two deflate streams", "garbage behind"],
)
def test_what_no_sender_packs_is_refused(encoding: bytes, body: bytes) -> None:
    """A thousand of nothing: each is small, and each made a copy of all that follows."""
    refused = unpacked(body, encoding)
    assert isinstance(refused, Defect)
    assert refused.code == "invalid-encoding"
