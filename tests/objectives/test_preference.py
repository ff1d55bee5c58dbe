"""DPO, IPO, ORPO and the reward model: paper-literal twins, references, means, errors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from objectives import literal
from steepest.contract import SteepestError
from steepest.models import build_model
from steepest.objectives import dpo, get_objective, ipo, orpo, reference_logprobs, reward


def pairs(shape, narrower=0):
    """A batch of pairs, rejected rows narrower than chosen ones, and the logits for both."""
    count, width, vocabulary, seed = shape
    g = literal.generator(seed)
    batch = {
        "chosen": literal.rows(count, width, vocabulary, g),
        "rejected": literal.rows(count, max(2, width - narrower), vocabulary, g),
        "reference_chosen": -3 * torch.rand(count, generator=g),
        "reference_rejected": -3 * torch.rand(count, generator=g),
    }
    return batch, literal.randn(2 * count, width - 1, vocabulary, g=g)


def agrees(objective, formula, batch, logits, **options):
    """Loss and gradient of an objective are those of a formula in float64; returns the facts."""
    model = literal.Says(logits)
    loss, facts = objective(model, batch, **options)
    loss.backward()
    exact = logits.double().requires_grad_()
    expected = formula(exact)
    expected.backward()
    assert loss.dtype == torch.float32 and loss.shape == ()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.logits.grad.double(), exact.grad, rtol=1e-3, atol=1e-5)
    both = (batch["chosen"], batch["rejected"])
    assert facts["tokens"] == sum(int(side["mask"].sum()) for side in both)
    assert facts["weight"] == len(both[0]["ids"])
    return facts


beta = st.sampled_from([0.05, 0.1, 1.0])


@given(literal.shapes(), st.integers(0, 3), beta, st.sampled_from([0.0, 0.2]), st.booleans())
def test_dpo_is_the_papers(shape, narrower, beta, smoothing, cached):
    batch, logits = pairs(shape, narrower)
    facts = agrees(
        dpo,
        lambda x: literal.dpo(x, batch, beta, smoothing, cached),
        batch,
        logits,
        beta=beta,
        label_smoothing=smoothing,
        reference="cached" if cached else "none",
    )
    chosen, _, rejected, _ = literal.pair_sums(logits.double(), batch)
    assert facts["chosen_logp"].item() == pytest.approx(chosen.mean().item(), rel=1e-4, abs=1e-5)
    assert facts["rejected_logp"].item() == pytest.approx(rejected.mean().item(), rel=1e-4, abs=1e-5)
    if cached:
        chosen, rejected = chosen - batch["reference_chosen"], rejected - batch["reference_rejected"]
    near = {"rel": 1e-4, "abs": 1e-5}
    assert facts["chosen_reward"].item() == pytest.approx(beta * chosen.mean().item(), **near)
    assert facts["rejected_reward"].item() == pytest.approx(beta * rejected.mean().item(), **near)
    assert facts["margin"].item() == pytest.approx(beta * (chosen - rejected).mean().item(), **near)
    clear = (chosen - rejected).abs() > 1e-4
    if clear.all():
        assert facts["accuracy"].item() == pytest.approx((chosen > rejected).double().mean().item())


@given(literal.shapes(), st.integers(0, 3), beta)
def test_ipo_is_the_papers_per_token(shape, narrower, beta):
    batch, logits = pairs(shape, narrower)
    agrees(ipo, lambda x: literal.ipo(x, batch, beta), batch, logits, beta=beta)


@given(literal.shapes(), st.integers(0, 3), beta)
def test_orpo_is_the_papers(shape, narrower, beta):
    batch, logits = pairs(shape, narrower)
    for side in ("chosen", "rejected"):  # nothing is certain: every answer has a token
        batch[side]["mask"][:, :2] = batch[side]["targets"][:, 1] = True
    facts = agrees(orpo, lambda x: literal.orpo(x, batch, beta), batch, logits, beta=beta)
    chosen, lengths, _, _ = literal.pair_sums(logits.double(), batch)
    assert facts["nll"].item() == pytest.approx(-(chosen / lengths).mean().item(), rel=1e-4, abs=1e-5)


@given(literal.shapes())
def test_orpo_of_an_empty_answer_is_finite(shape):
    batch, logits = pairs(shape)
    model = literal.Says(logits)
    batch["rejected"]["targets"] = torch.zeros_like(batch["rejected"]["targets"])
    loss, _ = orpo(model, batch)
    loss.backward()
    assert loss.isfinite() and model.logits.grad.isfinite().all()


@given(st.integers(1, 5), st.booleans(), st.integers(0, 999))
def test_reward_is_bradley_terry(count, with_margin, seed):
    g = literal.generator(seed)
    batch, _ = pairs((count, 4, 3, seed))
    if with_margin:
        batch["margin"] = literal.randn(count, g=g)
    model = literal.Scores(literal.randn(2 * count, g=g))
    loss, facts = reward(model, batch)
    loss.backward()

    scores = model.scores.detach().double().requires_grad_()
    chosen, rejected = scores[:count], scores[count:]
    expected = -literal.sigmoid(chosen - rejected - batch.get("margin", 0.0)).log().mean()
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.scores.grad.double(), scores.grad, rtol=1e-4, atol=1e-6)
    assert facts["weight"] == count
    assert facts["accuracy"].item() == pytest.approx((chosen > rejected).double().mean().item())
    assert facts["margin"].item() == pytest.approx((chosen - rejected).mean().item(), rel=1e-4, abs=1e-5)
    assert facts["score"].item() == pytest.approx(scores.mean().item(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["dpo", "ipo", "orpo"])
def test_facts_and_losses_are_means_over_pairs(name):
    batch, logits = pairs((4, 6, 5, 3))
    objective = get_objective(name)
    loss, facts = objective(literal.Says(logits), batch)
    single = []
    for i in range(4):
        one = {
            k: {n: y[i : i + 1] for n, y in x.items()} if isinstance(x, dict) else x[i : i + 1]
            for k, x in batch.items()
        }
        single.append(objective(literal.Says(logits[[i, 4 + i]]), one))
    assert loss.item() == pytest.approx(sum(part.item() for part, _ in single) / 4, rel=1e-5)
    means = [n for n in facts if n not in ("tokens", "weight")]
    assert {"margin", "accuracy", "chosen_reward", "rejected_reward"} <= set(means)
    for n in means:
        assert not facts[n].requires_grad
        mean = sum(f[n].item() for _, f in single) / 4
        assert facts[n].item() == pytest.approx(mean, rel=1e-4, abs=1e-6), n


def test_a_model_is_its_own_reference():
    model = build_model("tiny", vocab_size=32, context=16, seed=0)
    batch, _ = pairs((3, 9, 32, 4), narrower=2)
    del batch["reference_chosen"], batch["reference_rejected"]
    cached = reference_logprobs(model, batch)
    assert set(cached) == {"reference_chosen", "reference_rejected"}
    assert not any(x.requires_grad for x in cached.values())
    loss, facts = dpo(model, {**batch, **cached})
    assert loss.item() == pytest.approx(math.log(2), rel=1e-5)
    assert facts["margin"].item() == pytest.approx(0, abs=1e-5)


def test_a_reference_has_no_dropout_and_gives_the_mode_back():
    class Dropping(literal.Says):
        def forward(self, *given, **named):
            out = super().forward(*given, **named)
            out.logits = torch.nn.functional.dropout(out.logits, 0.5, self.training)
            return out

    batch, logits = pairs((3, 6, 5, 5))
    model = Dropping(logits).train()
    exact = literal.pair_sums(logits.double(), batch)
    torch.testing.assert_close(
        reference_logprobs(model, batch)["reference_chosen"].double(), exact[0], rtol=1e-4, atol=1e-5
    )
    assert model.training
    assert not reference_logprobs(model.eval(), batch)["reference_chosen"].requires_grad
    assert not model.training


def test_errors():
    batch, logits = pairs((2, 5, 4, 6))
    model = literal.Says(logits)
    bare = {k: batch[k] for k in ("chosen", "rejected")}
    with pytest.raises(SteepestError, match="dpo with a cached reference needs reference_chosen"):
        dpo(model, bare)
    with pytest.raises(SteepestError, match="ipo with a cached reference"):
        ipo(model, bare)
    with pytest.raises(SteepestError, match="rejected is missing"):
        orpo(model, {"chosen": batch["chosen"]})
    with pytest.raises(SteepestError, match="as many chosen as rejected rows, got 2 and 1"):
        orpo(model, {**bare, "rejected": {k: x[:1] for k, x in batch["rejected"].items()}})
    with pytest.raises(SteepestError, match=r"one score a row, shape \(4,\), got \(2,\)"):
        reward(literal.Scores(torch.zeros(2)), bare)
