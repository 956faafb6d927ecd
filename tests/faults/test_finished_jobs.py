"""Any file of a finished job is damaged: the same result, or the file's name.

The same command runs again in the same process. Checkpoints of a training that is over
are read by nobody; ``test_damaged_checkpoints`` damages them in their own time.
"""

from __future__ import annotations

import pytest

from tests.faults import finished

pytestmark = pytest.mark.usefixtures("compiles_fast")
RERANKER, DUO = "fresh:reranker:t5:tiny", "fresh:duo:t5:tiny"
LABELS = {"TOP_K": 5, "MAX_QUERIES": 4, "CHECKPOINT": RERANKER, "MESH": "data=1"}
TRAINS = {
    **finished.SHORT, "EXPORT": None, "LOGGERS": (),
    "MAX_TRAIN_QUERIES": 8, "MAX_TEST_QUERIES": 8,
}  # fmt: skip
WITHOUT_DEPTH = {name: value for name, value in TRAINS.items() if name != "DEPTH"}
WRITES = {
    "MESH": "data=1", "DROPOUT": 0.0, "VOCABULARY_SIZE": 300, "TRAIN_STEPS": 2,
    "MAX_TRAIN_QUERIES": 8, "QUERY_LENGTH": 12, "DOC_LENGTH": 20, "EXPORT": None,
}  # fmt: skip
LLM = {"LLM_BASE_URL": None, "LLM_MODEL": "fake"}
QUICK = {
    "mine": ("mine", {"TOP_K": 5}),
    "synthesize": ("synthesize", {"QUERIES": 12}),
}
SLOW = {
    "label": ("label", LABELS),
    "label_pairs": (
        "label_pairs",
        {**LABELS, "PAIR_CHECKPOINT": DUO, "PAIRS": 4, "DELTA": 3},
    ),
    "label_llm": ("label_llm", {"TOP_K": 5, "MAX_QUERIES": 4, **LLM}),
    "synthesize_llm": (
        "synthesize",
        {"QUERIES": 4, "MAKERS": "(@queries.Written(),)", **LLM},
    ),
    "evaluate": ("evaluate", {"CHECKPOINT": RERANKER, "TOP_K": 5, "MESH": "data=1"}),
    "tables": (
        "tables",
        {"CHECKPOINTS": "('fresh:dual_encoder:bert:tiny',)", "TOP_K": 5},
    ),
    "export": ("quickstart+small", {**TRAINS, "EXPORT": "sentence_transformers"}),
    "dense": ("quickstart+small", TRAINS),
    "reranker": ("rankt5_teacher+small", WITHOUT_DEPTH),
    "rounds": ("specialize+small", TRAINS),
    "splade": ("splade+small", TRAINS),
    "colbert": ("pairdistill_colbert+small", TRAINS),
    "query_side": ("query_side+small", TRAINS),
    "ranks": ("twolar+small", {**TRAINS, **LLM}),
    "students": (
        "students+small",
        {**WITHOUT_DEPTH, "STUDENTS": "('dense', 'reranker')"},
    ),
    "generator": ("query_generator+small", WRITES),
}


def swept(name: str, folder, toy: str, llm, damage: tuple[str, ...]) -> int:
    """Damages each file of a finished job in turn; returns how many damages."""
    recipe, flags = {**QUICK, **SLOW}[name]
    if "LLM_BASE_URL" in flags:
        flags = {**flags, "LLM_BASE_URL": llm.base_url}
    place = folder / "job"
    where = {"COLLECTIONS": f"('{toy}',)"} if name == "tables" else {"COLLECTION": toy}
    argv = finished.words(recipe, **where, MODEL_DIR=place, **flags)
    assert finished.run(argv).status == 0
    assert finished.run(argv).status == 0
    kept = finished.keep(place, folder / "kept")
    whole = finished.results(place)
    assert whole
    assert finished.run(argv).status == 0
    assert finished.results(place) == whole
    finished.restore(place, kept)
    faults, count = [], 0
    for path, how in finished.damages(kept, damage):
        with finished.damaged(place, kept, path, how) as changed:
            if not changed:
                continue
            count += 1
            found = finished.run(argv)
            told = found.err.strip().splitlines()
            if found.status == 0 and finished.results(place) == whole:
                continue
            named = any(path.name in line for line in told)
            if not (found.status == 2 and len(told) == 2 and named):
                faults.append((str(path), how, found.status, found.err[-300:]))
    assert not faults
    return count


@pytest.mark.parametrize("name", QUICK)
def test_a_flipped_byte_changes_no_result(name, tmp_path, toy, llm):
    assert swept(name, tmp_path, toy, llm, ("flip",)) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_no_damage_of_a_file_changes_a_result(name, tmp_path, toy, llm):
    assert swept(name, tmp_path, toy, llm, tuple(finished.DAMAGE)) >= 8
