"""The known answers of the five papers' code, in f64 to 1e-9 and in f32 to 1e-5."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import losses
from distill_jax.losses import no_contrast
from distill_jax.ops import masked, pairs, similarity


@pytest.fixture(autouse=True)
def _strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


def value(loss, *arrays, gradient=False, **options):
    """The loss in f64, after checking that f32 agrees to 1e-5."""
    function = functools.partial(loss, **options)
    function = jax.jit(jax.value_and_grad(function) if gradient else function)
    arrays = [np.asarray(array, np.float64) for array in arrays]
    if loss is losses.pairwise_kl:
        arrays[1:3] = [array.astype(np.int32) for array in arrays[1:3]]
    if loss is losses.in_batch_contrastive:
        arrays[1] = arrays[1].astype(np.int32)
    single = function(
        *[
            jnp.asarray(a, jnp.float32 if a.dtype == np.float64 else a.dtype)
            for a in arrays
        ]
    )
    with jax.enable_x64(True):
        double = function(*[jnp.asarray(array) for array in arrays])
        double = jax.tree.map(np.asarray, double)
    for narrow, wide in zip(jax.tree.leaves(single), jax.tree.leaves(double)):
        assert narrow.dtype == jnp.float32
        assert wide.dtype == np.float64
        np.testing.assert_allclose(narrow, wide, rtol=1e-5, atol=1e-5)
    return double


def near(expected, tolerance=1e-9):
    return pytest.approx(expected, rel=tolerance, abs=tolerance)


def lists(*rows):
    return np.asarray([rows] if np.ndim(rows[0]) == 0 else rows, np.float64)


def by_rank(ranks):
    ranks = lists(*ranks)
    return ranks.shape[-1] - ranks + 1


def by_order(order):
    labels = np.zeros((1, len(order)))
    labels[0, order] = np.arange(len(order), 0, -1)
    return labels


def total(loss):
    return lambda *arrays, **options: jax.jit(
        functools.partial(loss, reduce_fn=masked.total, **options)
    )(*arrays)


# RankNet


def test_ranknet_is_the_mean_over_pairs_with_the_right_sign(cases):
    case = cases["ranknet_single_list"]
    scores, labels = (
        lists(*case["inputs"]["scores"]),
        by_rank(case["inputs"]["teacher_rank"]),
    )
    mean, gradient = value(losses.ranknet, scores, labels, gradient=True)
    expected = case["expected"]
    assert mean == near(expected["mean_over_pairs"])
    assert gradient[0] == near(expected["grad_of_mean"])
    assert total(losses.ranknet)(scores, labels) == near(expected["sum"], 1e-5)
    assert losses.ranknet(scores, labels, reduce_fn=masked.count) == expected["n_pairs"]
    assert mean != pytest.approx(expected["WRONG_sign_mean"], rel=0.1)
    wrong = value(losses.ranknet, -scores, labels)
    assert wrong == near(expected["WRONG_sign_mean"])


def test_ranknet_probe(cases):
    expected = cases["ranknet_sign_probe"]["expected"]
    right = value(losses.ranknet, lists(0.4, 0.0), lists(2, 1))
    swapped = value(losses.ranknet, lists(0.4, 0.0), lists(1, 2))
    assert right == near(expected["correct"]) == near(math.log(1 + math.exp(-0.4)))
    assert right < math.log(2)
    assert swapped == near(expected["after_swap_correct"])
    assert right != pytest.approx(expected["WRONG"], rel=0.1)


def test_ranknet_counts_pairs_of_the_whole_batch(cases):
    case = cases["ranknet_batch_reductions"]
    scores, labels = case["inputs"]["scores"], case["inputs"]["targets"]
    where, expected = np.asarray(case["inputs"]["mask"], bool), case["expected"]
    assert value(losses.ranknet, scores, labels) == near(
        expected["no_mask_mean_over_all_pairs"]
    )
    mean = value(losses.ranknet, scores, labels, where=where)
    assert mean == near(expected["masked_mean_over_all_pairs"])
    assert mean != pytest.approx(expected["masked_mean_of_per_query_means"], rel=0.1)
    number = losses.ranknet(
        jnp.asarray(scores), jnp.asarray(labels), where=where, reduce_fn=masked.count
    )
    assert number == sum(expected["masked_n_pairs"])


@pytest.mark.parametrize("name", ["ranknet_ties", "ranknet_all_tied"])
def test_ranknet_ties_make_no_pair(cases, name):
    case = cases[name]
    found = value(
        losses.ranknet,
        lists(*case["inputs"]["scores"]),
        lists(*case["inputs"]["targets"]),
    )
    expected = case["expected"]
    assert found == near(expected.get("mean", expected.get("recommended")))


def test_ranknet_of_thirty_docs(cases):
    case = cases["ranknet_30_docs_twolar_shape"]
    scores = lists(*case["inputs"]["scores"])
    labels = by_rank(case["inputs"]["teacher_rank"])
    assert value(losses.ranknet, scores, labels) == near(case["expected"]["mean"])
    assert value(losses.ranknet, scores, 1 / (31 - labels)) == near(
        case["expected"]["mean"]
    )
    assert value(total(losses.ranknet), scores, labels) == near(case["expected"]["sum"])


def test_ranknet_temperature_divides(cases):
    case = cases["ranknet_lightning_temperature"]
    scores, labels = (
        lists(*case["inputs"]["scores"]),
        by_rank(case["inputs"]["teacher_rank"]),
    )
    found = value(losses.ranknet, scores, labels, temperature=2.0)
    assert found == near(case["expected"]["value_if_divided"])
    assert value(losses.ranknet, scores, labels, temperature=0.5) == near(
        case["expected"]["lightning_ir_value"]
    )


def test_ranknet_weights(cases):
    case = cases["ranknet_weighted_by_diff"]
    arrays = lists(*case["inputs"]["scores"]), lists(*case["inputs"]["targets"])
    found = value(losses.ranknet, *arrays, weight="difference")
    assert found == near(case["expected"]["weight_by_diff"])
    found = value(losses.ranknet, *arrays, weight="squared")
    assert found == near(case["expected"]["weight_by_diff_powed"])


# ListMLE


def test_listmle_on_logits(cases):
    case = cases["listmle_logits"]
    scores = lists(*case["inputs"]["scores"])
    labels = by_order(case["inputs"]["order_best_first_0based"])
    found, gradient = value(losses.listmle, scores, labels, gradient=True)
    assert found == near(case["expected"]["sum"])
    assert gradient[0] == near(case["expected"]["grad_of_sum"])
    assert found != pytest.approx(case["expected"]["mean_over_positions"], rel=0.1)


@pytest.mark.parametrize(
    "name",
    ["listmle_on_probabilities_theta_1.0", "listmle_on_probabilities_theta_0.1"],
)
def test_listmle_on_probabilities_is_the_literal_form(cases, name):
    case = cases[name]
    scores = lists(*case["inputs"]["scores"])
    labels = by_order(case["inputs"]["order_best_first_0based"])
    found, gradient = value(
        losses.listmle,
        scores,
        labels,
        gradient=True,
        on="probabilities",
        temperature=case["inputs"]["theta"],
    )
    assert found == near(case["expected"]["sum"])
    assert gradient[0] == near(case["expected"]["grad_of_sum"])


@pytest.mark.parametrize("number", [2, 3, 5, 10])
def test_listmle_on_probabilities_has_a_floor(cases, number):
    expected = cases["listmle_on_probabilities_floor"]["expected"]
    labels = lists(*range(number, 0, -1))
    uniform = value(losses.listmle, 0 * labels, labels, on="probabilities")
    assert uniform == near(expected["value_at_uniform_scores"][str(number)])
    assert uniform == near(math.lgamma(number + 1))

    @jax.jit
    def descend(scores):
        loss = functools.partial(losses.listmle, on="probabilities")
        return scores - 2.0 * jax.grad(loss)(scores, labels)

    scores = jnp.asarray(labels, jnp.float32) * 0.1
    for _ in range(300):
        scores = descend(scores)
    floor = expected["minimum_reachable_loss"][str(number)]
    lowest = float(losses.listmle(scores, labels, on="probabilities"))
    assert floor - 1e-4 <= lowest <= floor + 0.05


def test_listmle_is_independent_of_padding(cases):
    case = cases["listmle_padding"]
    found = []
    for pads in case["inputs"]["n_pad"]:
        scores = lists(*case["inputs"]["logits"], *[0.0] * pads)
        labels = lists(*case["inputs"]["labels"], *[0.0] * pads)
        where = np.arange(2 + pads)[None] < 2
        found.append(value(losses.listmle, scores, labels, where=where))
    assert found == near([case["expected"]["correct_for_any_padding"]] * len(found))
    for right, buggy in zip(found[1:], case["expected"]["BUGGY_when_pad_mass_1"][1:]):
        assert right != pytest.approx(buggy, rel=0.1)


def test_listmle_prefers_the_agreeing_order(cases):
    case = cases["listmle_direction"]
    scores = lists(*case["inputs"]["scores"])
    agreeing = value(losses.listmle, scores, by_order([0, 1, 2]))
    opposed = value(losses.listmle, scores, by_order([2, 1, 0]))
    assert agreeing == near(case["expected"]["order_012"])
    assert opposed == near(case["expected"]["order_210"])


# KL divergence


def test_kl_with_temperatures(cases):
    case = cases["kl_listwise_tamber"]
    inputs, expected = case["inputs"], case["expected"]
    options = {
        "student_temperature": inputs["tau_student"],
        "teacher_temperature": inputs["tau_teacher"],
    }
    cosine, teacher = lists(*inputs["cosine"]), lists(*inputs["teacher_norm"])
    found, gradient = value(
        losses.kl_divergence, cosine, teacher, gradient=True, **options
    )
    assert found == near(expected["batchmean"])
    assert gradient == near(np.asarray(expected["grad_cosine"]))
    for row, per_query in enumerate(expected["per_query"]):
        one = value(losses.kl_divergence, cosine[[row]], teacher[[row]], **options)
        assert one == near(per_query)
    for wrong in ("REVERSED_direction", "WRONG_mean_over_elements"):
        assert found != pytest.approx(expected[wrong], rel=0.05)


def test_kl_of_colbert(cases):
    case = cases["kl_listwise_colbert"]
    found, gradient = value(
        losses.kl_divergence,
        case["inputs"]["student_maxsim"],
        case["inputs"]["teacher_logit"],
        gradient=True,
    )
    assert found == near(case["expected"]["batchmean"])
    assert gradient == near(np.asarray(case["expected"]["grad"]))


def test_kl_target_is_the_softmax_of_what_it_is_given(cases):
    case = cases["kl_teacher_softmax_flag"]
    logits = lists(*case["inputs"]["teacher_logit"])
    with jax.enable_x64(True):
        everywhere = jnp.ones(logits.shape, bool)
        raw = masked.softmax(jnp.asarray(logits), everywhere)
        flat = masked.softmax(jax.nn.log_sigmoid(jnp.asarray(logits)), everywhere)
    assert raw == near(np.asarray(case["expected"]["target_from_raw_logits"]))
    assert flat == near(np.asarray(case["expected"]["target_from_log_sigmoid"]))


def test_kl_of_a_sentinel_is_cross_entropy(cases):
    case = cases["kl_onehot_sentinel"]
    scores = lists(*case["inputs"]["student"])
    found = value(losses.kl_divergence, scores, lists(*case["inputs"]["teacher"]))
    assert found == near(case["expected"]["value"])
    minus_infinity = lists(1.0, -np.inf, -np.inf, -np.inf)
    assert value(losses.kl_divergence, scores, minus_infinity) == near(found)
    one_hot = lists(1.0, 0.0, 0.0, 0.0)
    assert value(losses.softmax_cross_entropy, scores, one_hot) == near(
        case["expected"]["cross_entropy_on_index0"]
    )


@pytest.mark.parametrize(("temperature", "key"), [(1.0, "T1"), (10.0, "T10")])
def test_kl_over_the_whole_batch(cases, temperature, key):
    """Other queries' docs keep their place in the student's softmax with target 0."""
    case = cases["kl_in_batch_dpr"]
    targets = np.full((2, 4), case["inputs"]["fill"])
    for row, (start, end) in enumerate(case["inputs"]["own_block"]):
        targets[row, start:end] = case["inputs"]["teacher"][row]
    found = value(
        losses.kl_divergence,
        case["inputs"]["score_matrix"],
        targets,
        student_temperature=temperature,
    )
    assert found == near(case["expected"][key])


def test_kl_of_the_second_stage(cases):
    case = cases["kl_intermediate_stage2"]
    found = value(
        losses.kl_divergence,
        case["inputs"]["retriever_dot"],
        case["inputs"]["ranker_dot"],
    )
    assert found == near(case["expected"]["value"])


# Pairwise KL


def padded_pairs(rows):
    width = max(map(len, rows))
    first = np.full((len(rows), width), -1)
    second, p = first.copy(), np.full(first.shape, np.nan)
    for row, judged in enumerate(rows):
        for column, (i, j, probability) in enumerate(judged):
            first[row, column], second[row, column] = i, j
            p[row, column] = probability
    return first, second, p, first >= 0


def test_pairwise_kl_is_the_mean_over_all_pairs(cases):
    case = cases["pairwise_kl"]
    first, second, p, where = padded_pairs(case["inputs"]["pairs_i_j_p"])
    scores, expected = lists(*case["inputs"]["scores"]), case["expected"]
    found, gradient = value(
        losses.pairwise_kl, scores, first, second, p, where=where, gradient=True
    )
    assert found == near(expected["code_mean_over_all_pairs"])
    assert gradient == near(np.asarray(expected["grad_of_code_mean"]))
    assert 3 * found == near(expected["with_lambda_3"])
    sums = found * where.sum()
    assert sums / 2 == near(expected["paper_sum_over_pairs_mean_over_queries"])
    assert sums == near(sum(map(sum, expected["terms"])))


def test_pairwise_kl_is_cross_entropy_less_entropy(cases):
    case = cases["pairwise_kl_equivalence"]
    inputs, expected = case["inputs"], case["expected"]
    scores = lists(inputs["si"], inputs["sj"])
    found, gradient = value(
        losses.pairwise_kl, scores, [[0]], [[1]], [[inputs["p"]]], gradient=True
    )
    assert found == near(expected["kl"]) == near(expected["bce_minus_entropy"])
    assert gradient[0] == near([expected["d_si"], -expected["d_si"]])


def test_pairwise_kl_at_certain_probabilities(cases):
    case = cases["pairwise_kl_degenerate"]
    for p, expected in zip(case["inputs"]["p"], case["expected"]["value"]):
        scores = lists(case["inputs"]["si"], case["inputs"]["sj"])
        found, gradient = value(
            losses.pairwise_kl, scores, [[0]], [[1]], [[p]], gradient=True
        )
        assert found == near(expected)
        assert np.isfinite(gradient).all()


def test_duot5_probability(cases):
    case = cases["duot5_probability"]
    z = np.asarray([[case["inputs"]["z_true"], case["inputs"]["z_false"]]])
    with jax.enable_x64(True):
        log_p = masked.log_softmax(jnp.asarray(z), jnp.ones(z.shape, bool))[0, 0]
    assert float(log_p) == near(case["expected"]["logp"])
    assert math.exp(log_p) == near(case["expected"]["p"])


# ADR-MSE


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("loss", {}),
        ("loss_T_0_5", {"temperature": 0.5}),
        ("loss_no_discount", {"discount": None}),
        ("loss_reciprocal", {"discount": "reciprocal"}),
    ],
)
def test_adr_mse(cases, key, options):
    case = cases["adr_mse"]
    scores = lists(*case["inputs"]["scores"])
    labels = by_rank(case["inputs"]["teacher_rank"])
    found, gradient = value(losses.adr_mse, scores, labels, gradient=True, **options)
    assert found == near(case["expected"][key])
    other = cases["adr_mse_NOT_this"]["expected"]["rank_llm_value"]
    assert found != pytest.approx(other, rel=0.1)
    if not options:
        assert gradient[0] == near(case["expected"]["grad"])


def test_approximate_ranks(cases):
    case = cases["adr_mse"]
    scores = lists(*case["inputs"]["scores"])
    with jax.enable_x64(True):
        ranks = pairs.sigmoid_ranks(jnp.asarray(scores), jnp.ones(scores.shape, bool))
        assert ranks[0] == near(case["expected"]["approx_rank"])
        assert float(ranks.sum()) == near(case["expected"]["sum_approx_ranks"])


def test_adr_mse_vanishes_at_wide_gaps(cases):
    case = cases["adr_mse_perfect_limit"]
    scores = lists(*case["inputs"]["scores"])
    found = value(losses.adr_mse, scores, by_rank(case["inputs"]["teacher_rank"]))
    assert found == near(case["expected"]["loss"])


def test_adr_mse_ranks_within_the_list(cases):
    case = cases["adr_mse_targets_to_ranks"]
    depth, ranks = case["inputs"]["depth"], lists(*case["inputs"]["run_rank"])
    targets = depth - ranks + 1
    assert targets[0].tolist() == case["expected"]["targets"]
    found = pairs.middle_ranks(jnp.asarray(targets), jnp.ones(targets.shape, bool))
    assert found[0].tolist() == case["expected"]["ranks_back"]


# Contrastive


def contrastive_inputs(case):
    inputs = case["inputs"]
    queries = np.asarray(inputs["query_emb"])
    docs = np.asarray(inputs["passage_emb_flat"]).reshape(3, inputs["list_length"], -1)
    numbers = {doc: row for row, doc in enumerate(sorted(set(inputs["docids"])))}
    ids = np.asarray([numbers[doc] for doc in inputs["docids"]]).reshape(3, -1)
    teacher = np.asarray(inputs["teacher_norm"]).reshape(3, -1)
    return queries, docs, ids, teacher, sorted(numbers)


@pytest.mark.parametrize("block_size", [None, 1, 2])
def test_contrastive_over_the_batch(cases, block_size):
    case = cases["infonce_hard_negatives_across_batch"]
    queries, docs, ids, teacher, names = contrastive_inputs(case)
    expected, threshold = case["expected"], case["inputs"]["threshold"]
    options = {
        "false_negative_threshold": threshold,
        "temperature": case["inputs"]["tau"],
        "block_size": block_size,
    }
    similarity_ = np.einsum("qd,bnd->qbn", queries, docs)
    found = value(losses.in_batch_contrastive, similarity_, ids, teacher, **options)
    assert found == near(expected["mean"])
    assert found != pytest.approx(expected["mean_without_masks"], rel=0.05)

    blocked = no_contrast(ids, teacher, false_negative_threshold=threshold)
    for row, contrast in enumerate(expected["no_contrast_ids"]):
        assert sorted({names[i] for i in ids[row][blocked[row]]}) == contrast

    def of_docs(docs):
        # Of docs' type: a constant keeps the type that it was first compiled with.
        scores = jnp.einsum("qd,bnd->qbn", jnp.asarray(queries, docs.dtype), docs)
        return losses.in_batch_contrastive(
            scores, ids, teacher, **(options | {"temperature": 0.05})
        )

    mean, gradient = value(of_docs, docs, gradient=True)
    assert mean == near(expected["mean_tau_0_05"])
    assert gradient.reshape(9, 2) == near(
        np.asarray(expected["grad_passage_emb_tau_0_05"])
    )


def test_contrastive_per_query_and_unmasked(cases):
    case = cases["infonce_hard_negatives_across_batch"]
    queries, docs, ids, teacher, _ = contrastive_inputs(case)
    scores = np.einsum("qd,bnd->qbn", queries, docs)
    for key, numbers, threshold in [
        ("per_query", ids, 0.6),
        ("per_query_without_masks", np.arange(9).reshape(3, 3), None),
    ]:
        for row, expected in enumerate(case["expected"][key]):
            found = value(
                losses.in_batch_contrastive,
                scores,
                numbers,
                teacher,
                labelled=np.arange(3) == row,
                temperature=0.01,
                false_negative_threshold=threshold,
            )
            assert found == near(expected)


def test_contrastive_and_listwise_together(cases):
    case = cases["infonce_hard_negatives_across_batch"]
    queries, docs, _, teacher, _ = contrastive_inputs(case)
    own = np.einsum("qd,qnd->qn", queries, docs)
    listwise = value(
        losses.kl_divergence,
        own,
        teacher,
        student_temperature=0.05,
        teacher_temperature=0.3,
    )
    assert listwise == near(case["expected"]["listwise_kl_same_batch"])
    combined = 0.1 * case["expected"]["mean"] + listwise
    assert combined == near(case["expected"]["combined_0_1_contrastive_plus_listwise"])


@pytest.mark.parametrize(
    "name", ["false_negative_threshold", "false_negative_threshold_zero_top"]
)
def test_false_negative_threshold_is_strict(cases, name):
    case = cases[name]
    teacher = lists(*case["inputs"]["teacher_norm"])
    with jax.enable_x64(True):
        blocked = no_contrast(
            np.arange(teacher.size)[None],
            teacher,
            false_negative_threshold=case["inputs"]["threshold"],
        )
    assert blocked[0, 0]  # the positive itself
    assert blocked[0, 1:].tolist() == (case["expected"]["masked_as_false_negative"][1:])


def test_false_negative_threshold_of_negative_labels():
    """Logits: a doc that the teacher puts above a negative positive is no negative."""
    labels = np.asarray([[-2.0, -1.5, -2.7, -2.9, -6.0]])
    blocked = no_contrast(np.arange(5)[None], labels, false_negative_threshold=0.6)
    # The bound is -2 - 0.4 * 2 = -2.8.
    assert blocked[0].tolist() == [True, True, True, False, False]


def test_contrastive_of_a_query_with_two_lists():
    """Its two positives are no negatives of each other; its own negatives stay."""
    found = value(
        losses.in_batch_contrastive,
        np.asarray([[[1.0, 0.0], [1.0, 0.0]]] * 2),
        np.asarray([[10, 20], [11, 21]]),
        np.zeros((2, 2)),
        query_rows=np.asarray([7, 7]),
        temperature=1.0,
    )
    assert found == near(math.log(1 + 2 / math.e))


@pytest.mark.parametrize("block_size", [None, 3])
def test_contrastive_of_queries_with_any_number_of_lists(block_size):
    """Against loops over queries and docs; a query of -1 is nobody's."""
    rng = np.random.default_rng(3)
    of = np.asarray([5, 2, 5, -1, 2, 5, -1, 9])
    labelled = np.asarray([True] * 5 + [False] + [True] * 2)
    scores = rng.normal(size=(8, 8, 3))
    ids = np.stack([rng.permutation(12)[:3] for _ in of])
    labels = rng.normal(size=(8, 3))
    blocked = np.asarray(no_contrast(ids, labels, false_negative_threshold=0.6))
    expected = []
    for i in np.flatnonzero(labelled):
        alike = [i] + [j for j in range(8) if of[j] == of[i] >= 0 and labelled[j]]
        known = {ids[j, n] for j in alike for n in range(3) if blocked[j, n]}
        total = sum(np.exp(scores[i])[~np.isin(ids, list(known))])
        positive = np.exp(scores[i, i, 0])
        expected.append(np.log((positive + total) / positive))
    found = value(
        losses.in_batch_contrastive,
        scores,
        ids,
        labels,
        query_rows=of,
        labelled=labelled,
        temperature=1.0,
        false_negative_threshold=0.6,
        block_size=block_size,
    )
    assert found == near(np.mean(expected))


def test_contrastive_with_one_hard_negative(cases):
    case = cases["infonce_in_batch_one_hard_negative"]
    matrix = np.asarray(case["inputs"]["score_matrix_queries_x_passages"])
    found = value(
        losses.in_batch_contrastive,
        matrix.reshape(2, 2, 2),
        np.arange(4).reshape(2, 2),
        np.zeros((2, 2)),
        temperature=1.0,
    )
    assert found == near(case["expected"]["mean"])
    one_hot = np.eye(4)[case["inputs"]["positive_column"]]
    assert value(losses.softmax_cross_entropy, matrix, one_hot) == near(
        case["expected"]["mean"]
    )


def test_contrastive_of_contriever(cases):
    case = cases["infonce_contriever"]
    scores = np.asarray(case["inputs"]["q"]) @ np.asarray(case["inputs"]["k"]).T
    found = value(
        losses.in_batch_contrastive,
        scores[:, :, None],
        np.arange(2)[:, None],
        np.zeros((2, 1)),
        temperature=case["inputs"]["temperature"],
    )
    assert found == near(case["expected"]["mean"])


def test_contrastive_of_colbert_leaves_out_own_negatives(cases):
    case = cases["colbert_in_batch_loss"]
    matrix = np.asarray(case["inputs"]["score_matrix"]).reshape(2, 2, 2)
    arguments = matrix, np.arange(4).reshape(2, 2), np.zeros((2, 2))
    options = {"temperature": 1.0, "own_negatives": False}
    found = value(losses.in_batch_contrastive, *arguments, **options)
    assert found == near(case["expected"]["mean"])
    for row, expected in enumerate(case["expected"]["per_query"]):
        one = value(
            losses.in_batch_contrastive,
            *arguments,
            labelled=np.arange(2) == row,
            **options,
        )
        assert one == near(expected)


def test_float32_survives_temperatures_that_overflow_exp(cases):
    case = cases["float32_overflow_probe"]
    logits = jnp.asarray(case["inputs"]["cosines"]) / case["inputs"]["tau"]
    assert jnp.isinf(jnp.exp(logits)).all()
    found = masked.logsumexp(logits, jnp.ones(2, bool))
    assert found == near(case["expected"]["logsumexp"], 1e-6)


def test_bf16_inputs_are_widened_before_the_temperature(cases):
    case = cases["bf16_score_resolution"]
    cosine = jnp.asarray([case["inputs"]["cosine"]], jnp.bfloat16)
    assert (
        cosine.astype(jnp.float32)[0].tolist()
        == (case["expected"]["bf16_round_to_nearest"])
    )
    loss = losses.softmax_cross_entropy(cosine / 1, jnp.asarray([[1.0, 0.0]]))
    assert loss.dtype == jnp.float32


# Cross-entropy, margins, totals


@pytest.mark.parametrize("name", ["lce_localized_contrastive", "lce_two_queries"])
def test_localized_contrastive_estimation(cases, name):
    case = cases[name]
    found, gradient = value(
        losses.softmax_cross_entropy,
        case["inputs"]["scores"],
        case["inputs"]["targets"],
        gradient=True,
    )
    assert found == near(case["expected"]["loss"])
    if "grad" in case["expected"]:
        assert gradient[0] == near(case["expected"]["grad"])


def test_margin_mse_of_triples(cases):
    case = cases["margin_mse_gpl"]
    inputs = case["inputs"]
    # A negative teacher margin is a pair the other way round: the same square.
    margins = np.asarray(inputs["teacher_margin"])
    scores = np.stack([inputs["student_pos"], inputs["student_neg"]], -1)
    labels = np.stack([margins, np.zeros_like(margins)], -1)
    found, gradient = value(losses.margin_mse, scores, labels, gradient=True)
    assert found == near(case["expected"]["loss"])
    assert gradient[:, 0] == near(case["expected"]["grad_pos"])
    assert gradient[:, 1] == near(case["expected"]["grad_neg"])


def test_margin_mse_of_all_pairs(cases):
    case = cases["margin_mse_listwise_all_pairs"]
    arrays = case["inputs"]["scores"], case["inputs"]["targets"]
    assert value(losses.margin_mse, *arrays) == near(case["expected"]["loss"])


def test_margin_mse_reads_raw_logits(cases):
    case = cases["margin_teacher_activation_trap"]
    logits = lists(*case["inputs"]["teacher_logits"])
    found = value(losses.margin_mse, np.zeros((1, 2)), logits)
    assert found == near(case["expected"]["margin_raw"] ** 2)
    squashed = case["expected"]["margin_after_sigmoid"]
    assert found != pytest.approx(squashed**2, rel=0.1)


def test_the_total_of_pairdistill(cases):
    case = cases["pairdistill_total"]
    inputs, expected = case["inputs"], case["expected"]
    matrix = np.asarray(inputs["score_matrix"]).reshape(2, 2, 2)
    own = matrix[np.arange(2), np.arange(2)]
    first, second, p, where = padded_pairs(inputs["pairs_i_j_p"])
    distilled = value(losses.kl_divergence, own, inputs["teacher_logit"])
    pairwise = value(losses.pairwise_kl, own, first, second, p, where=where)
    contrastive = value(
        losses.in_batch_contrastive,
        matrix,
        np.arange(4).reshape(2, 2),
        np.zeros((2, 2)),
        temperature=1.0,
        own_negatives=False,
    )
    assert distilled == near(expected["L_KD"])
    assert pairwise == near(expected["L_pair"])
    assert contrastive == near(expected["L_CL"])
    sum_ = distilled + inputs["lambda_pair"] * pairwise + contrastive
    assert sum_ == near(expected["total"])


# MaxSim


def maxsim(query, doc, where=None):
    """The score of one document."""
    where = None if where is None else jnp.asarray(where)[None, None]
    return similarity.maxsim_lists(query[None], doc[None, None], where)[0, 0]


def test_maxsim_masks_document_tokens(cases):
    case = cases["maxsim_basic"]
    query, doc = np.asarray(case["inputs"]["Q"]), np.asarray(case["inputs"]["D"])
    where = np.asarray(case["inputs"]["D_mask"], bool)
    with jax.enable_x64(True):
        found = maxsim(jnp.asarray(query), jnp.asarray(doc), where)
        unmasked = maxsim(jnp.asarray(query), jnp.asarray(doc))
    assert float(found) == near(case["expected"]["score"])
    assert float(unmasked) == near(case["expected"]["score_without_mask"])


def test_maxsim_without_tokens(cases):
    case = cases["maxsim_all_masked"]
    query, doc = jnp.asarray(case["inputs"]["Q"]), jnp.asarray(case["inputs"]["D"])
    found = maxsim(query, doc, jnp.zeros(doc.shape[0], bool))
    assert float(found) == case["expected"]["score"]


def test_maxsim_keeps_negative_scores(cases):
    case = cases["maxsim_negative_scores"]
    query, doc = np.asarray(case["inputs"]["Q"]), np.asarray(case["inputs"]["D"])
    padded = np.concatenate([doc, np.zeros((3, 2))])
    where = np.arange(5) < 2
    with jax.enable_x64(True):
        found = maxsim(jnp.asarray(query), jnp.asarray(padded), where)
    assert float(found) == near(case["expected"]["score"])
    assert float(found) != case["expected"]["WRONG_if_padding_is_zero_vector"]


def test_maxsim_of_distances(cases):
    """-|q - d|^2 = 2 <q, d> - 2 for unit vectors."""
    case = cases["maxsim_l2"]
    query, doc = np.asarray(case["inputs"]["Q"]), np.asarray(case["inputs"]["D"])
    with jax.enable_x64(True):
        found = 2 * maxsim(jnp.asarray(query), jnp.asarray(doc)) - 6
    assert float(found) == near(case["expected"]["score"])
