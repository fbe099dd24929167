"""Which KV block belongs to whom: reference counts, the free list, and the prefix cache.

Only this file moves blocks. It knows nothing of tensors: block ids are rows of whatever the KV cache holds.
"""

from array import array

import xxhash

from ..kernels.span import NULL_BLOCK, PROMPT_BLOCK
from .sequence import UNKNOWN, Sequence


class Block:
    """One block of the pool, and its place in the free list (an intrusive doubly linked one).

    `num_draft_computed`: of its tokens, those that the draft model has computed too.
    """

    __slots__ = ("block_id", "hash", "next", "num_draft_computed", "prev", "ref_count", "token_ids")

    def __init__(self, block_id: int) -> None:
        self.block_id = block_id
        self.ref_count = 0
        self.num_draft_computed = 0
        self.hash: bytes | None = None
        self.token_ids: list[int] = []
        self.prev: Block | None = None
        self.next: Block | None = None


class FreeList:
    """Free blocks, first to be reused first: uncached ones in front, cached ones behind by age of last use."""

    def __init__(self) -> None:
        self._front, self._back = Block(-1), Block(-1)
        self._front.next, self._back.prev = self._back, self._front
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __contains__(self, block: Block) -> bool:
        return block.next is not None

    def push_front(self, block: Block) -> None:
        assert self._front.next is not None
        self._insert(self._front, block, self._front.next)

    def push_back(self, block: Block) -> None:
        assert self._back.prev is not None
        self._insert(self._back.prev, block, self._back)

    def pop_front(self) -> Block:
        block = self._front.next
        assert block is not None and block is not self._back, "the free list is empty"
        self.remove(block)
        return block

    def remove(self, block: Block) -> None:
        assert block.prev is not None and block.next is not None, "not in the free list"
        block.prev.next, block.next.prev = block.next, block.prev
        block.prev = block.next = None
        self._size -= 1

    def _insert(self, before: Block, block: Block, after: Block) -> None:
        assert block.next is None, "already in the free list"
        before.next = after.prev = block
        block.prev, block.next = before, after
        self._size += 1


class BlockManager:
    """Hands out `num_blocks` blocks of `block_size` tokens; block 0 is reserved.

    A free block keeps its contents until it is reused, so a block may be free *and* cached. A hash stands only for a
    fully written block, is chained over all tokens before it, is salted by tenant and adapter, and is believed only when the
    token ids agree as well.
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool = True) -> None:
        assert num_blocks >= 2
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.blocks = [Block(block_id) for block_id in range(num_blocks)]
        self.free = FreeList()
        # Spread out, so that sequences admitted together can each grow into neighbouring blocks: the CPU kernels read
        # one contiguous run in place.
        for block_id in _spread_out(num_blocks):
            if block_id != NULL_BLOCK:
                self.free.push_back(self.blocks[block_id])
        self.cached: dict[bytes, Block] = {}
        self.prefix_queries = 0
        self.prefix_hits = 0

    @property
    def num_usable_blocks(self) -> int:
        return len(self.blocks) - 1

    @property
    def num_used_blocks(self) -> int:
        return self.num_usable_blocks - len(self.free)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def find_cached_prefix(self, seq: Sequence) -> list[Block]:
        """The longest run of cached blocks at the start of `seq`, leaving at least one token to compute, and no block of
        a sparse prompt cut."""
        if not self._may_share(seq):
            return []
        most = (seq.num_tokens - 1) // self.block_size
        found: list[Block] = []
        for position, block_hash in enumerate(self._hashes(seq, most)):
            block = self.cached.get(block_hash)
            start = position * self.block_size
            if block is None or block.token_ids != seq.token_ids[start : start + self.block_size]:
                break
            found.append(block)
        while found and seq.last_cut(len(found) * self.block_size) != len(found) * self.block_size:
            found.pop()
        return found

    def next_hash(self, seq: Sequence, num_cached_blocks: int) -> bytes | None:
        """Hash of the first full block of `seq` after its cached prefix, None if there is none."""
        if not self._may_share(seq) or (num_cached_blocks + 1) * self.block_size > seq.num_tokens - 1:
            return None
        return self._hashes(seq, num_cached_blocks + 1)[num_cached_blocks]

    def can_admit(self, seq: Sequence, prefix: list[Block]) -> bool:
        """Whether all tokens of `seq` fit now, given the cached `prefix` it would share."""
        revived = sum(block.ref_count == 0 for block in prefix)
        return self.blocks_for(seq.num_tokens) - len(prefix) <= len(self.free) - revived

    def admit(self, seq: Sequence, prefix: list[Block]) -> None:
        """Give `seq` its cached prefix; its tokens count as computed."""
        assert not seq.block_table
        for block in prefix:
            if block.ref_count == 0:
                self.free.remove(block)
            block.ref_count += 1
            seq.block_table.append(block.block_id)
        seq.num_computed_tokens = len(prefix) * self.block_size
        if not seq.was_admitted and not seq.params.hidden_state:
            self.prefix_queries += seq.num_prompt_tokens
            self.prefix_hits += seq.num_computed_tokens

    def can_extend(self, seq: Sequence, num_new_tokens: int) -> bool:
        return self._missing(seq, num_new_tokens) <= len(self.free)

    def extend(self, seq: Sequence, num_new_tokens: int) -> None:
        """Make room for the next `num_new_tokens` tokens to compute."""
        for _ in range(self._missing(seq, num_new_tokens)):
            block = self._take(after=seq.block_table[-1] if seq.block_table else None)
            block.ref_count = 1
            seq.block_table.append(block.block_id)

    def mark_computed(self, seq: Sequence, num_new_tokens: int) -> None:
        """Count tokens as computed, or sure to be before anything that is scheduled from here on; make the blocks that they
        filled findable, unless tokens are still unknown."""
        start = seq.num_computed_tokens
        seq.num_computed_tokens += num_new_tokens
        if seq.token_ids[seq.num_computed_tokens - 1] != UNKNOWN:
            self.make_findable(seq, start, seq.num_computed_tokens)

    def make_findable(self, seq: Sequence, start: int, stop: int) -> None:
        """The blocks that the computed tokens from `start` to `stop` have filled; all tokens up to there are known."""
        first, full = start // self.block_size, stop // self.block_size
        if not self._may_share(seq) or full == first:
            return
        hashes = self._hashes(seq, full)
        for position in range(first, full):
            block = self.blocks[seq.block_table[position]]
            if block.hash is not None or hashes[position] in self.cached:
                continue
            block.hash = hashes[position]
            start = position * self.block_size
            block.token_ids = seq.token_ids[start : start + self.block_size]
            self.cached[block.hash] = block

    def find_draft_computed(self, seq: Sequence) -> int:
        """How many tokens of `seq` the draft model has computed, those that it has for another sequence included."""
        position = seq.num_draft_computed_tokens
        while position // self.block_size < len(seq.block_table):
            number = position // self.block_size
            found = number * self.block_size + self.blocks[seq.block_table[number]].num_draft_computed
            if found <= position:
                break
            position = found
        seq.num_draft_computed_tokens = position
        return position

    def mark_draft_computed(self, seq: Sequence, num_new_tokens: int) -> None:
        """Count further tokens as computed by the draft model, whose KV lies in the same blocks."""
        stop = seq.num_draft_computed_tokens + num_new_tokens
        for number in range(seq.num_draft_computed_tokens // self.block_size, self.blocks_for(stop)):
            block = self.blocks[seq.block_table[number]]
            in_block = min(self.block_size, stop - number * self.block_size)
            block.num_draft_computed = max(block.num_draft_computed, in_block)
        seq.num_draft_computed_tokens = stop

    def release(self, seq: Sequence) -> None:
        """Give back all blocks of `seq`; what is cached stays findable until reused."""
        # Last block first: of a cached chain, the tail is the least useful and goes first.
        for block_id in reversed(seq.block_table):
            block = self.blocks[block_id]
            block.ref_count -= 1
            if block.ref_count == 0:
                if block.hash is None:
                    self.free.push_front(block)
                else:
                    self.free.push_back(block)
        seq.lose_blocks()

    def forget(self, block_ids: list[int]) -> None:
        """Make blocks unfindable; their contents cannot be trusted."""
        for block_id in block_ids:
            self._uncache(self.blocks[block_id])

    def check(self, live: list[Sequence]) -> None:
        """Assert the pool's invariants against all live sequences; for tests and debugging."""
        references: dict[int, int] = {}
        for seq in live:
            assert len(set(seq.block_table)) == len(seq.block_table), "a block twice in one table"
            for block_id in seq.block_table:
                references[block_id] = references.get(block_id, 0) + 1
        free = {block.block_id for block in self.blocks if block in self.free}
        assert len(free) == len(self.free)
        assert NULL_BLOCK not in free and NULL_BLOCK not in references
        for block in self.blocks[1:]:
            assert block.ref_count == references.get(block.block_id, 0), "a reference count is off"
            assert (block.block_id in free) == (block.ref_count == 0), "a block is lost or free twice"
        for seq in live:
            for position in range(seq.num_draft_computed_tokens):
                block = self.blocks[seq.block_table[position // self.block_size]]
                assert position % self.block_size < block.num_draft_computed, "a draft's KV is lost"
        for block_hash, block in self.cached.items():
            assert block.hash == block_hash and len(block.token_ids) == self.block_size

    def _may_share(self, seq: Sequence) -> bool:
        """Not where a hidden state is asked for: it may not depend on what was computed before, nor its time tell of it."""
        return self.prefix_caching and not seq.params.hidden_state

    def _missing(self, seq: Sequence, num_new_tokens: int) -> int:
        return self.blocks_for(seq.num_computed_tokens + num_new_tokens) - len(seq.block_table)

    def _take(self, after: int | None) -> Block:
        block = self._free_neighbour(after)
        if block is None:
            block = self.free.pop_front()
            self._uncache(block)
        else:
            self.free.remove(block)
        block.num_draft_computed = 0
        return block

    def _free_neighbour(self, block_id: int | None) -> Block | None:
        """The next block of the pool, if it is free and holds nothing of use."""
        if block_id is None or block_id + 1 >= len(self.blocks):
            return None
        neighbour = self.blocks[block_id + 1]
        return neighbour if neighbour in self.free and neighbour.hash is None else None

    def _uncache(self, block: Block) -> None:
        if block.hash is not None:
            del self.cached[block.hash]
            block.hash = None
            block.token_ids = []

    def _hashes(self, seq: Sequence, count: int) -> list[bytes]:
        """The hash chain of the first `count` full blocks, extended where it is too short."""
        hashes = seq.block_hashes
        while len(hashes) < count:
            start = len(hashes) * self.block_size
            digest = xxhash.xxh3_128(hashes[-1] if hashes else _salt(seq))
            digest.update(self._how_computed(seq, start + self.block_size).encode())
            digest.update(array("q", seq.token_ids[start : start + self.block_size]).tobytes())
            hashes.append(digest.digest())
        return hashes[:count]

    def _how_computed(self, seq: Sequence, stop: int) -> str:
        """What tells the block that ends at `stop` from one that dense attention would have computed; empty for that."""
        sparse, first = seq.sparse_attention, seq.first_sparse_position
        how = ""
        if sparse is not None and stop > seq.num_prompt_tokens:
            # What was decoded sparsely is not what a prompt's dense attention would have computed.
            how = f"sparse {sparse.mass} {sparse.min_context}"
        if sparse is not None and first is not None and stop > first:
            how += f"prompt {sparse.prompt_mass} {first}"
            if -(-stop // PROMPT_BLOCK) * PROMPT_BLOCK > seq.num_prompt_tokens:
                # Its rows chose keys without those that a longer prompt would have had beside them.
                how += f" of {seq.num_prompt_tokens}"
        return how


def _salt(seq: Sequence) -> bytes:
    # 0xff is in no UTF-8: no tenant can be called like another's adapter.
    return seq.tenant.encode() + (b"" if seq.adapter is None else b"\xff" + seq.adapter.encode())


def _spread_out(count: int) -> list[int]:
    """0 .. count - 1 in bit-reversed order: every prefix of the list is spread over the whole range."""
    bits = max(1, (count - 1).bit_length())
    order = (int(f"{number:0{bits}b}"[::-1], 2) for number in range(1 << bits))
    return [number for number in order if number < count]
