"""A mistake in a scenario names its line, and what would be right."""

from __future__ import annotations

import pytest

from tests.scenarios.parse import ScenarioError, parse, rewritten
from tests.scenarios.play import play
from tests.scenarios.why import why

HEAD = "# covers: I5\nhosts h1 h2\nguest web iscsi h1\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("at soon drain h1", "x:4: 'soon' is not a number"),
        ("at 0 drian h1", "x:4: no deed is called drian; there are "),
        ("at 0 drain h9", "x:4: there is no host h9: drain HOST"),
        ("at 0 drain h1 --force", "x:4: drain has no option --force; it has --power-off, --allow-stop"),
        ("at 0 lie for 3", "x:4: lie cannot be taken back: no `for`"),
        ("guest db drbd h1", "x:4: guest db drbd HOST PEER: the peer is missing"),
        ("guest db nfs h1", "x:4: db: no kind of disk is called nfs; there are drbd, iscsi, iscsi-qemu"),
        ("set speed 3", "x:4: there is no setting speed VALUE; there are per-source"),
        ('when "web', "x:4: No closing quotation"),
        ("drain h1", "x:4: not understood: 'drain h1'"),
        ("lasts 3", "x:4: nothing happens"),
        ("# covers: I6", "x:4: what is covered is said already"),
    ],
)
def test_a_mistake_names_its_line(line: str, said: str) -> None:
    with pytest.raises(ScenarioError) as error:
        parse("x", HEAD + line + "\n")
    assert said in str(error.value)


def test_every_scenario_says_what_it_covers() -> None:
    with pytest.raises(ScenarioError, match="no line says what is covered"):
        parse("x", "hosts h1 h2\nat 0 drain h1\n")


@pytest.mark.parametrize(
    ("covers", "said"),
    [
        ("I21", "x:1: 'I21' is neither an invariant nor a case"),
        ("I5, the ordinary case", "x:1: 'the ordinary case' is neither"),
        ("field-notes 6 (a #1), 7 (b #2)", "x:1: '7' is neither"),
        ("field-notes 13", "x:1: 'field-notes 13' is neither"),
    ],
)
def test_what_it_covers_is_an_invariant_or_a_case(covers: str, said: str) -> None:
    with pytest.raises(ScenarioError) as error:
        parse("x", HEAD.replace("I5", covers))
    assert said in str(error.value)


def test_what_it_covers_is_read_without_its_words() -> None:
    head = HEAD.replace("I5", 'I5, field-notes 7 (Incus #2241: "busy" for ever), I16: words, I6')
    found = parse("x", head + "at 0 drain h1\n")
    assert (found.invariants, found.cases) == ({"I5", "I16"}, {7})


def test_an_event_that_never_happens_is_no_story() -> None:
    with pytest.raises(ScenarioError, match="x:4: never happened: pigs fly"):
        play(parse("x", HEAD + 'when "pigs fly" drain h1\n'))


def test_rewriting_keeps_the_head_and_is_what_is_read_back() -> None:
    text = HEAD + "at 0 drain h1\n"
    once = rewritten(text, "expect\n  a\nend\n  b\n")
    assert once == text + "expect\n  a\nend\n  b\n"
    assert parse("x", once).expected == "expect\n  a\nend\n  b\n"
    assert rewritten(once, "expect\nend\n") == text + "expect\nend\n"


def test_a_reason_without_a_row_is_told_in_full() -> None:
    assert why("memory: needs 4 GiB", "the moon is in the wrong house") == (
        'memory, "the moon is in the wrong house"'
    )
