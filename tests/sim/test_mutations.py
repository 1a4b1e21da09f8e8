"""The simulator notices when a guard is removed. One process per fault."""

from __future__ import annotations

import re

import pytest

from tests.sim.mutations import MUTATIONS, REPOSITORY, SEEDS, Mutation, NoMatchError, mutated, try_out
from tests.sim.run import run_seed


@pytest.mark.mutation
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: each.name)
def test_a_removed_guard_is_noticed(mutation: Mutation) -> None:
    noticed = try_out(mutation)
    assert noticed.seed is not None, f"{SEEDS} seeds, and nobody noticed"
    assert not re.search(r"\b(Name|Attribute|Type|Import|Syntax)Error\b", noticed.story), (
        f"what was changed does not work at all: {noticed.story}"
    )
    print(f"seed {noticed.seed}, number {noticed.seeds}: {noticed.story}")
    whole = run_seed(noticed.seed)
    assert not whole.failure, f"it fails without the fault as well: {whole.failure}"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: each.name)
def test_the_list_fits_the_code(mutation: Mutation) -> None:
    for edit in mutation.edits:
        changed = mutated((REPOSITORY / edit.file).read_text(), edit)
        compile(changed, edit.file, "exec")


def test_what_is_not_there_exactly_once_is_an_error() -> None:
    edit = MUTATIONS[0].edits[0]
    with pytest.raises(NoMatchError, match="0 times"):
        mutated("", edit)
    with pytest.raises(NoMatchError, match="2 times"):
        mutated(edit.old * 2, edit)
