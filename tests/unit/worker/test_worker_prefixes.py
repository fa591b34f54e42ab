"""What a worker tells routers of its engine's cache, worked by hand."""

from __future__ import annotations

from chiron.internal.v1 import worker_pb2
from chiron.requests.prefixes import NamedPrompt, name_prompt
from chiron.v1 import inference_pb2 as pb
from services.worker import prefixes
from services.worker.prefixes import PrefixBook, PrefixNews

PROMPT = NamedPrompt((1, 2, 3, 4), (0.25, 0.5, 0.75, 1.0))
"""Four beginnings of a prompt of 64 tokens: in blocks of 16 tokens, each ends with a block."""
BLOCKS = ("a", "b", "c", "d")


class Watched:
    """A book, one subscriber, and how often the book said that something is gone."""

    def __init__(self) -> None:
        self.gone = 0
        self.book = PrefixBook(self.count)
        self._subscription = self.book.subscribe(True)
        news = self._subscription.__enter__()
        assert news is not None
        self.news: PrefixNews = news
        assert self.take().cleared

    def count(self) -> None:
        self.gone += 1

    def take(self) -> worker_pb2.PrefixNews:
        return self.book.take(self.news)


def test_a_computed_prompt_is_told_once() -> None:
    watched = Watched()
    watched.book.cached(PROMPT, 64, 16, BLOCKS)
    assert sorted(watched.take().cached) == [1, 2, 3, 4]
    watched.book.cached(PROMPT, 64, 16, BLOCKS)
    assert not watched.news.any


def test_what_ends_in_a_block_goes_with_it() -> None:
    watched = Watched()
    watched.book.cached(PROMPT, 64, 16, BLOCKS)
    watched.take()
    watched.book.gone(["d", "c", "unknown"])
    told = watched.take()
    assert (sorted(told.gone), list(told.cached), watched.gone) == ([3, 4], [], 1)
    watched.book.cached(PROMPT, 64, 16, BLOCKS)
    assert sorted(watched.take().cached) == [3, 4]


def test_a_beginning_shorter_than_a_block_stays_as_long_as_the_first_block() -> None:
    watched = Watched()
    watched.book.cached(PROMPT, 64, 48, ("a",))
    watched.take()
    watched.book.gone(["a"])
    assert sorted(watched.take().gone) == [1, 2, 3, 4]


def test_a_prompt_without_a_full_block_is_cached_nowhere() -> None:
    watched = Watched()
    watched.book.cached(PROMPT, 64, 128, ())
    assert not watched.news.any
    assert not watched.book


def test_the_same_beginning_computed_anew_follows_its_new_block() -> None:
    watched = Watched()
    watched.book.cached(PROMPT, 64, 16, BLOCKS)
    watched.book.cached(PROMPT, 64, 16, ("a", "b", "c", "e"))
    watched.take()
    watched.book.gone(["d"])
    assert not watched.news.any
    watched.book.gone(["e"])
    assert list(watched.take().gone) == [4]


def test_an_emptied_cache_voids_all_that_was_told() -> None:
    watched = Watched()
    watched.book.cached(PROMPT, 64, 16, BLOCKS)
    watched.take()
    watched.book.gone(None)
    told = watched.take()
    assert told.cleared
    assert not told.cached


def test_a_new_subscriber_begins_with_what_there_is_the_newest_first() -> None:
    watched = Watched()
    watched.book.cached(NamedPrompt((7,), (1.0,)), 16, 16, ("z",))
    watched.book.cached(PROMPT, 64, 16, BLOCKS)
    with watched.book.subscribe(True) as news:
        assert news is not None
        told = watched.book.take(news)
    assert told.cleared
    assert list(told.cached) == [1, 2, 3, 4, 7]


def test_who_reads_too_slowly_begins_anew(monkeypatch) -> None:
    monkeypatch.setattr(prefixes, "MOST_TOLD", 3)
    watched = Watched()
    watched.book.cached(PROMPT, 64, 16, BLOCKS)
    for number in range(5):
        watched.book.prefilled(worker_pb2.Prefill(request_id=str(number)))
    told = watched.take()
    assert told.cleared
    assert list(told.cached) == [1, 2, 3]
    assert len(told.prefills) == 3


def test_the_least_recently_used_are_followed_no_more(monkeypatch) -> None:
    monkeypatch.setattr(prefixes, "MOST_KEPT", 5)
    watched = Watched()
    watched.book.cached(PROMPT, 64, 16, BLOCKS)
    watched.take()
    watched.book.cached(NamedPrompt((8, 9), (0.5, 1.0)), 32, 16, ("y", "z"))
    told = watched.take()
    assert (sorted(told.cached), list(told.gone), len(watched.book)) == ([8, 9], [4], 5)
    watched.book.gone(["d"])
    assert not watched.news.any


def test_whoever_wants_no_news_has_none_kept_for_it() -> None:
    book = PrefixBook(lambda: None)
    with book.subscribe(False) as news:
        assert news is None
        assert not book.wanted
    with book.subscribe(True):
        assert book.wanted
    assert not book.wanted


def test_names_tell_how_much_of_a_prompt_they_stand_for() -> None:
    text = name_prompt(pb.GenerateRequest(prompt="é" * 256), "")
    assert text.shares == (0.5, 1.0)
    ids = name_prompt(pb.GenerateRequest(prompt_token_ids=pb.TokenIds(ids=range(256))), "")
    assert ids.shares == (0.25, 0.5, 0.75, 1.0)
    message = pb.ChatMessage(role="user", content="x" * 1000)
    chat = name_prompt(pb.GenerateRequest(chat=pb.ChatInput(messages=[message])), "")
    assert len(chat.shares) == 3
    assert 0.24 < chat.shares[0] < 0.26
    assert not name_prompt(pb.GenerateRequest(prompt="short"), "").hashes
