"""What holds of every prompt's hashes, of every index of them, and of every pick that knows them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chiron.client.prefix import BLOCK_ENDS, HASH_BYTES, MOST_HASHES, prefix_hashes
from chiron.policy.affinity import DEAD_BAND_S, SHARE_BAND
from chiron.policy.dispatch import Decision, DispatchRequest, InstanceView, LeastExpectedWait
from chiron.policy.prefixes import PrefixIndex
from chiron.policy.words import RequestClass, Role
from chiron.requests.prefixes import salted
from chiron.v1 import inference_pb2 as pb

# Lengths around the ends of blocks are what matters; the bytes in between only have to differ.
lengths = st.one_of(st.integers(0, 3000), st.sampled_from(BLOCK_ENDS).map(lambda end: end - 1))
seeds = st.integers(0, 3)


def text(length: int, seed: int) -> str:
    return (f"{seed}: the quick brown fox {seed} " * (length // 20 + 1))[:length]


def of_text(prompt: str, adapter: str = "") -> list[bytes]:
    return prefix_hashes(pb.GenerateRequest(prompt=prompt, adapter=adapter))


@given(lengths, seeds, lengths, seeds, lengths)
def test_prompts_share_as_many_hashes_as_they_share_full_blocks(
    common: int, seed: int, rest: int, other: int, more: int
) -> None:
    head = text(common, seed)
    one, two = head + "a" + text(rest, other), head + "b" + text(more, other)
    blocks = sum(end <= common for end in BLOCK_ENDS)
    first, second = of_text(one), of_text(two)
    assert first[:blocks] == second[:blocks]
    assert not set(first[blocks:]) & set(second)
    assert len(first) == sum(end <= len(one) for end in BLOCK_ENDS) <= MOST_HASHES
    assert all(len(each) == HASH_BYTES for each in first)


messages = st.lists(
    st.builds(
        pb.ChatMessage,
        role=st.sampled_from(("user", "assistant", "system")),
        content=st.text(max_size=300),
        name=st.sampled_from(("", "Ada")),
    ),
    min_size=1,
    max_size=8,
)


@given(messages, messages)
def test_a_conversation_that_grows_keeps_its_hashes(
    begun: list[pb.ChatMessage], more: list[pb.ChatMessage]
) -> None:
    before = prefix_hashes(pb.GenerateRequest(chat=pb.ChatInput(messages=begun)))
    after = prefix_hashes(pb.GenerateRequest(chat=pb.ChatInput(messages=begun + more)))
    assert after[: len(before)] == before


@given(lengths, seeds, st.sampled_from(("", "a", "b")), st.sampled_from(("", "a", "b")))
def test_tenants_and_adapters_never_share_a_hash(length: int, seed: int, one: str, two: str) -> None:
    hashes = of_text(text(length, seed))
    assert (salted(one, hashes) == salted(two, hashes)) == (one == two or not hashes)
    assert not set(of_text(text(length, seed), "adapter")) & set(hashes)


chains = st.integers(0, 5).map(lambda chain: tuple(range(chain * 10, chain * 10 + 6)))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from("abc"), chains, st.integers(0, 6)),
        st.tuples(st.just("gone"), st.sampled_from("abc"), chains, st.integers(0, 6)),
        st.tuples(st.just("void"), st.sampled_from("abc"), chains, st.just(0)),
    ),
    max_size=30,
)


@given(steps, chains)
def test_an_index_with_room_says_what_a_list_of_pairs_would(steps: list[tuple], asked: tuple) -> None:
    index, model = PrefixIndex(1000), set()
    for kind, holder, chain, count in steps:
        part = chain[:count] if kind == "add" else chain[count:]
        if kind == "add":
            index.add(holder, part)
            model |= {(holder, key) for key in part}
        elif kind == "gone":
            index.gone(holder, part)
            model -= {(holder, key) for key in part}
        else:
            index.void(holder)
            model = {pair for pair in model if pair[0] != holder}
    wanted = {}
    for holder in "abc":
        depth = next((i for i, key in enumerate(asked) if (holder, key) not in model), len(asked))
        if depth:
            wanted[holder] = depth
    assert index.depths(asked) == wanted


@given(steps, st.integers(1, 12))
def test_an_index_never_outgrows_its_limit_and_keeps_the_newest_chains_head(
    steps: list[tuple], limit: int
) -> None:
    index = PrefixIndex(limit)
    for kind, holder, chain, count in steps:
        if kind == "add" and count:
            index.add(holder, chain[:count])
            assert index.depths(chain)[holder] >= min(count, limit)
        elif kind == "void":
            index.void(holder)
            assert holder not in index.depths(chain)
        assert len(index) <= limit


ids = "abcd"
views = st.lists(
    st.builds(
        InstanceView,
        instance_id=st.sampled_from(ids),
        role=st.sampled_from(Role),
        batch_size=st.integers(1, 12),
        running=st.integers(0, 12),
        waiting_interactive=st.integers(0, 2),
        waiting_batch=st.integers(0, 2),
        reserved=st.integers(0, 2),
        queue_allowance=st.integers(0, 3),
        kv_free_tokens=st.integers(0, 2000),
        itl_ms=st.floats(0, 100),
        service_s=st.floats(0.01, 100),
        prefill_tokens_per_s=st.sampled_from((0.0, 100.0, 10_000.0)),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda view: view.instance_id,
)


@given(
    views,
    st.sampled_from(RequestClass),
    st.integers(0, 5000),
    st.dictionaries(st.sampled_from(ids), st.integers(1, 5000)),
)
def test_the_cache_decides_only_among_instances_of_like_load(
    instances: list[InstanceView], kind: RequestClass, prompt_tokens: int, cached: dict[str, int]
) -> None:
    policy, by_id = LeastExpectedWait(), {view.instance_id: view for view in instances}
    cold = policy.pick(DispatchRequest(kind, prompt_tokens), instances)
    warm = policy.pick(DispatchRequest(kind, prompt_tokens, frozenset(), cached), instances)
    assert isinstance(warm, Decision) == isinstance(cold, Decision)
    if not (isinstance(cold, Decision) and isinstance(warm, Decision)):
        return
    assert warm.scores == cold.scores
    assert warm.cached_tokens == cached.get(warm.instance_id, 0)
    if warm.instance_id == cold.instance_id:
        assert warm.reason == cold.reason
        return
    assert warm.instance_id in cached
    least, taken = by_id[cold.instance_id], by_id[warm.instance_id]
    if cold.scores[cold.instance_id] == 0:
        assert warm.scores[warm.instance_id] == 0
        assert taken.role is least.role
        assert share(taken, kind) <= share(least, kind) + SHARE_BAND
    # What the wait is longer, the prefill is shorter, by more than the dead band.
    longest = max(prompt_tokens, *cached.values())
    assert ttft_s(taken, warm, longest, cached) < ttft_s(least, warm, longest, cached) - DEAD_BAND_S + 1e-9


def share(view: InstanceView, kind: RequestClass) -> float:
    waiting = view.waiting_interactive + (view.waiting_batch if kind is RequestClass.BATCH else 0)
    return (view.running + waiting + view.reserved) / view.batch_size


def ttft_s(view: InstanceView, decision: Decision, prompt_tokens: int, cached: dict[str, int]) -> float:
    uncached = max(1, prompt_tokens - cached.get(view.instance_id, 0))
    return decision.scores[view.instance_id] + uncached / (view.prefill_tokens_per_s or 5000.0)
