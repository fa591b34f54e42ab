"""Names the beginnings of a prompt, so that a router can tell who has computed one of them before.

The prompt never leaves: what travels is at most 64 hashes of 8 bytes. The prompt's bytes are cut where
`BLOCK_ENDS` says, and each full block's hash is BLAKE2b over the hash before it and the block: a hash stands
for all of the prompt up to its block's end. Two prompts share as many leading hashes as they share full
blocks. Routers take the hashes only as a hint, and make them differ between tenants themselves.
"""

from __future__ import annotations

import itertools
import sys
from array import array
from hashlib import blake2b

from chiron.v1 import inference_pb2 as pb

HASH_BYTES = 8
"""Size of a hash."""
_SIZES = (256, 512, 1024, 2048)
_BLOCKS_OF_A_SIZE = 16
BLOCK_ENDS = tuple(itertools.accumulate(size for size in _SIZES for _ in range(_BLOCKS_OF_A_SIZE)))
"""Offsets in bytes at which blocks end: fine at the beginning, where prompts part; 60 KiB in all."""
MOST_HASHES = len(BLOCK_ENDS)
MOST_BYTES = BLOCK_ENDS[-1]
"""Bytes of a prompt that are looked at; what follows costs nothing."""
BYTES_PER_TOKEN = 4
"""UTF-8 bytes in a token of English text under today's tokenizers; of token ids, exactly their size here."""
TOKEN_ENDS = tuple(end // BYTES_PER_TOKEN for end in BLOCK_ENDS)
"""About how many tokens lie before each block's end."""
_PERSON = b"chiron prefix 1"
_FIELD, _MESSAGE = b"\x1f", b"\x1e"
"""Ends of a field and of a message. Text may hold them too: a mistaken hint is the worst that comes of it."""


def prefix_hashes(request: pb.GenerateRequest) -> list[bytes]:
    """The hash of each full block of a request's input, from the first; at most MOST_HASHES.

    Texts, token ids and chats never share one, nor do adapters. A conversation that grows by messages keeps
    the hashes that it had.
    """
    kind = request.WhichOneof("input")
    if kind == "prompt":
        # A character is a byte or more.
        content = request.prompt[:MOST_BYTES].encode()
    elif kind == "prompt_token_ids":
        ids = array("I", request.prompt_token_ids.ids[: MOST_BYTES // BYTES_PER_TOKEN])
        if sys.byteorder == "big":
            ids.byteswap()
        content = ids.tobytes()
    elif kind == "chat":
        content = _chat(request.chat)
    else:
        return []
    length = len(content)
    if length < BLOCK_ENDS[0]:
        return []
    state = blake2b(f"{kind}\0{request.adapter}".encode(), digest_size=HASH_BYTES, person=_PERSON).digest()
    hashes, start = [], 0
    for end in BLOCK_ENDS:
        if end > length:
            break
        state = blake2b(state + content[start:end], digest_size=HASH_BYTES, person=_PERSON).digest()
        hashes.append(state)
        start = end
    return hashes


def _chat(chat: pb.ChatInput) -> bytes:
    """What a chat template renders, in a form of its own: tools and variables, then message after message."""
    content = bytearray()
    for part in (chat.template_kwargs, *chat.tools):
        if len(content) + part.ByteSize() > MOST_BYTES:
            # What comes later stands for nothing without it.
            return bytes(content)
        content += part.SerializeToString(deterministic=True) + _FIELD
    content += _MESSAGE
    for message in chat.messages:
        content += message.role.encode() + _FIELD
        for text in (message.name, message.tool_call_id):
            content += text[:MOST_BYTES].encode() + _FIELD
        for call in message.tool_calls:
            if len(content) + call.ByteSize() > MOST_BYTES:
                return bytes(content)
            content += call.SerializeToString(deterministic=True) + _FIELD
        content += message.content[:MOST_BYTES].encode() + _MESSAGE
        if len(content) >= MOST_BYTES:
            break
    return bytes(content)
