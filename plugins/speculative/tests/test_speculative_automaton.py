"""The suffix automaton against a search through the whole text."""

from __future__ import annotations

from andes_speculative.automaton import ROOT, SuffixAutomaton
from hypothesis import given, settings
from hypothesis import strategies as st

TEXTS = st.lists(st.integers(0, 3), max_size=60)


def longest_end(text: list[int], end: list[int], *, before: int) -> int:
    """Length of the longest end of `end` that lies in text[:before], by brute force."""
    for length in range(len(end), 0, -1):
        wanted = end[len(end) - length :]
        if any(text[i : i + length] == wanted for i in range(before - length + 1)):
            return length
    return 0


def followers(text: list[int], end: list[int]) -> list[int]:
    """Every token that stands behind an occurrence of `end`, in order."""
    size = len(end)
    return [text[i + size] for i in range(len(text) - size) if text[i : i + size] == end]


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_the_longest_end_that_occurred_before_is_that_of_a_search(text: list[int]) -> None:
    made = SuffixAutomaton()
    for count, token in enumerate(text, 1):
        made.extend(token)
        state, length = made.match()
        assert length == longest_end(text, text[:count], before=count - 1)
        if length:
            assert set(made.after(state)) == set(followers(text[:count], text[count - length : count]))


@given(TEXTS, TEXTS)
@settings(max_examples=300, deadline=None)
def test_another_text_is_followed_as_by_a_search_and_the_ways_on_are_all_that_there_are(
    text: list[int], other: list[int]
) -> None:
    made, state, length = SuffixAutomaton.of(text), ROOT, 0
    for count, token in enumerate(other, 1):
        state, length = made.step(state, length, token)
        assert length == longest_end(text, other[:count], before=len(text))
        ways = made.after(state)
        assert len(ways) == len(set(ways))
        assert set(ways) == set(followers(text, other[count - length : count]))


@given(TEXTS, st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_stepping_ahead_of_the_text_finds_what_adding_the_token_would(text: list[int], token: int) -> None:
    made = SuffixAutomaton.of(text)
    _, length = made.step(*made.match(), token)
    assert length == longest_end(text, [*text, token], before=len(text))
    assert len(made) == len(text)


def test_the_token_that_came_last_stands_first() -> None:
    # 1 2 was followed by 3, then by 4, then by 3 again
    made = SuffixAutomaton.of([1, 2, 3, 9, 1, 2, 4, 8, 1, 2])
    assert made.after(made.match()[0]) == [4, 3]
    again = SuffixAutomaton.of([1, 2, 3, 9, 1, 2, 4, 8, 1, 2, 3, 7, 1, 2])
    assert again.after(again.match()[0])[0] == 3


@given(TEXTS, TEXTS, TEXTS)
@settings(max_examples=100, deadline=None)
def test_a_fork_and_its_original_go_their_own_ways(text: list[int], one: list[int], two: list[int]) -> None:
    original = SuffixAutomaton.of(text)
    fork = original.fork()
    for token in one:
        original.extend(token)
    for token in two:
        fork.extend(token)
    for made, whole in ((original, text + one), (fork, text + two)):
        state, length = made.match()
        assert length == longest_end(whole, whole, before=len(whole) - 1)
        if length:
            assert set(made.after(state)) == set(followers(whole, whole[-length:]))


def test_a_long_repetition_has_two_states_a_token_at_most_and_costs_the_same_for_each() -> None:
    calls = [0]

    class Counting(SuffixAutomaton):
        def target(self, state: int, token: int) -> int:
            calls[0] += 1
            return super().target(state, token)

    counted = Counting()
    for _ in range(20_000):
        counted.extend(7)
    assert calls[0] < 4 * 20_000
    assert len(counted.links) <= 2 * 20_000 + 1
    assert counted.match()[1] == 19_999
