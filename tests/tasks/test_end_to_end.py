"""Every task from its rows to its score, with a model that is always right and one that is always wrong."""

from __future__ import annotations

from typing import Any

import pytest

from textguide import tasks

from .oracle import Oracle, run, scores

METRICS = {
    "arc_challenge": {"acc,none", "acc_norm,none"},
    "arc_easy": {"acc,none", "acc_norm,none"},
    "boolq": {"acc,none"},
    "gpqa_diamond_cot_zeroshot": {"exact_match,strict-match", "exact_match,flexible-extract"},
    "gpqa_diamond_generative_n_shot": {"exact_match,strict-match", "exact_match,flexible-extract"},
    "gpqa_diamond_n_shot": {"acc,none", "acc_norm,none"},
    "gpqa_diamond_zeroshot": {"acc,none", "acc_norm,none"},
    "gsm8k_cot": {"exact_match,strict-match", "exact_match,flexible-extract"},
    "gsm8k_cot_self_consistency": {"exact_match,score-first", "exact_match,maj@64", "exact_match,maj@8"},
    "humaneval": {"pass@1,create_test"},
    "lambada_mini": {"acc,none", "perplexity,none"},
    "lambada_openai": {"acc,none", "perplexity,none"},
    "piqa": {"acc,none", "acc_norm,none"},
    "triviaqa": {"exact_match,remove_whitespace"},
    "winogrande": {"acc,none"},
}


# Tasks whose results are tested in files of their own.
ELSEWHERE = {"continuations", "continuations_consistent", "continuations_positive", "sudoku4", "sudoku6"}


def test_every_task_has_its_metrics_listed() -> None:
    assert set(METRICS) | ELSEWHERE == set(tasks.names())


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("name", sorted(METRICS))
def test_right_answers_score_one_and_wrong_ones_zero(name: str, right: bool, data: str) -> None:
    found = scores(run(name, Oracle(right), data), name)
    assert set(found) == METRICS[name]
    perplexity = found.pop("perplexity,none", None)
    if perplexity is not None:
        assert (perplexity == 1.0) is right
    assert found == dict.fromkeys(found, 1.0 if right else 0.0)


@pytest.mark.parametrize("name", ["arc_easy", "gpqa_diamond_n_shot", "triviaqa", "winogrande"])
def test_shots_never_show_the_answer_to_the_question_itself(name: str, data: str) -> None:
    specs, manager = tasks.resolve([name], data)
    task = manager.load(specs)["tasks"][name]
    task.set_config("num_fewshot", 3)
    task.set_fewshot_seed(0)
    rows = [dict(task.eval_docs[index]) for index in range(5)]
    # With four rows to draw three shots from, a draw that did not leave out the question would soon hit it.
    task.sampler.df = rows[:4]
    for row in rows[:4]:
        for _ in range(10):
            asked_itself = row in task.sampler.sample(3, eval_doc=row)
            assert not asked_itself
        assert task.fewshot_cfg.split == task.config.test_split  # what makes lm-eval pass the row to leave out


# The first request of each task: rows, how the context begins and ends, and what follows it.
FIRST = {
    "arc_challenge": (
        1172,
        "Question: An astronomer",
        "in rotation?\nAnswer:",
        " Planetary density will decrease.",
    ),
    "arc_easy": (2376, "Question: Which statement best", "food webs?\nAnswer:", " Sunlight is the source of"),
    "boolq": (3270, "All biomass goes", "more energy make that produces?\nAnswer:", " no"),
    "gsm8k_cot": (1319, "Q: There are 15 trees", "at the farmers' market?\nA:", None),
    "gsm8k_cot_self_consistency": (1319, "Q: There are 15 trees", "at the farmers' market?\nA:", None),
    "humaneval": (164, "from typing import List", '    """\n', None),
    "lambada_mini": (47, "The whole mechanism", "Lights shone through the machine and into the", " ball"),
    "lambada_openai": (5153, "In my palm", "I don't care about", " signs"),
    "piqa": (1838, "Question: How do I ready", "new occupants?\nAnswer:", " Provide the guinea pig"),
    "triviaqa": (3000, "Question: Brunswick, Lancastrian", "which vegetable??\nAnswer:", None),
    "winogrande": (1267, "Sarah was a much better", "than Maria so Sarah", " always got the easier cases."),
}


@pytest.mark.parametrize("name", sorted(METRICS))
def test_the_first_request(name: str, data: str) -> None:
    specs, manager = tasks.resolve([name], data)
    rows = len(manager.load(specs)["tasks"][name].eval_docs)
    if tasks.is_protected(name):
        assert rows == 198
        return
    lm = Oracle(True)
    run(name, lm, data, limit=1)
    context, continuation = lm.prompts[0]
    expected_rows, start, end, follows = FIRST[name]
    assert rows == expected_rows
    assert context.startswith(start)
    assert context.endswith(end)
    assert follows is None or continuation.startswith(follows)


def test_winogrande_scores_the_same_ending_after_either_option(data: str) -> None:
    lm = Oracle(True)
    run("winogrande", lm, data, limit=1)
    assert [context.rpartition(" ")[2] for context, _ in lm.prompts] == ["Sarah", "Maria"]
    assert len({continuation for _, continuation in lm.prompts}) == 1


def test_lambada_mini_needs_no_data_folder(no_data: None) -> None:
    found = scores(run("lambada_mini", Oracle(True), limit=None), "lambada_mini")
    assert found == {"acc,none": 1.0, "perplexity,none": 1.0}


def test_lambada_mini_is_a_part_of_lambada(data: str) -> None:
    def texts(name: str) -> list[str]:
        specs, manager = tasks.resolve([name], data)
        return list(manager.load(specs)["tasks"][name].eval_docs["text"])

    mini, whole = texts("lambada_mini"), texts("lambada_openai")
    assert len(mini) == 47
    assert len(whole) == 5153
    assert set(mini) < set(whole)


@pytest.mark.parametrize(
    ("answers", "majority", "first"),
    [
        ((0, 0, 1, 0, 1), 1.0, 1.0),
        ((1, 0, 0), 1.0, 0.0),
        ((0, 1, 2, 1), 0.0, 1.0),
    ],
)
def test_self_consistency_takes_the_majority(
    answers: tuple[int, ...], majority: float, first: float, data: str
) -> None:
    def generation(doc: dict[str, Any], turn: int) -> str:
        # 0 is the right answer, the others are two different wrong ones.
        right = doc["answer"].rpartition("####")[2].strip()
        return f"So. The answer is {[right, '111111', '222222'][answers[turn]]}."

    name = "gsm8k_cot_self_consistency"
    found = scores(run(name, Oracle(True, generation), data, repeats=len(answers)), name)
    assert found == {f"exact_match,maj@{len(answers)}": majority, "exact_match,score-first": first}


def test_humaneval_estimates_pass_at_k(data: str) -> None:
    def generation(doc: dict[str, Any], turn: int) -> str:
        return doc["canonical_solution"] if turn == 2 else "    raise SystemExit(0)\n"

    found = scores(run("humaneval", Oracle(True, generation), data, repeats=4), "humaneval")
    assert found == {"pass@1,create_test": 0.25, "pass@4,create_test": 1.0}


def test_humaneval_runs_nothing_unless_it_is_confirmed(data: str) -> None:
    with pytest.raises(ValueError, match="confirm_run_unsafe_code"):
        run("humaneval", Oracle(True), data, confirm_run_unsafe_code=False)
