"""The clipped policy gradient: its paper-literal twin, its estimators, its values, its errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from objectives import literal
from steepest.contract import SteepestError
from steepest.models import build_model
from steepest.objectives import (
    kl_estimate,
    log_probabilities,
    policy,
    ppo,
    reference_logprobs,
    token_logprobs,
    token_values,
)
from steepest.objectives.logprobs import entropy


def rollouts(shape, per_token=False, left=False):
    """A batch, and the logits and values (B, T - 1) of the policy trained on it."""
    count, width, vocabulary, seed = shape
    g = literal.generator(seed)
    batch = literal.rows(count, width, vocabulary, g, left)
    logits = literal.randn(count, width - 1, vocabulary, g=g)
    said = {
        "old_logp": literal.Says(logits + 0.3 * literal.randn(*logits.shape, g=g)),
        "reference_logp": literal.Says(logits + 0.3 * literal.randn(*logits.shape, g=g)),
    }
    batch |= {name: token_logprobs(model, batch) for name, model in said.items()}
    batch["advantages"] = literal.randn(*((count, width) if per_token else (count,)), g=g)
    batch |= {name: literal.randn(count, width, g=g) for name in ("old_values", "returns")}
    return batch, logits, literal.randn(count, width - 1, g=g)


@given(
    literal.shapes(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.0, 0.2]),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([0.0, 0.05]),
    st.sampled_from(["token", "sequence"]),
)
def test_policy_is_the_papers(shape, per_token, left, clip, kl_coef, entropy_coef, normalise):
    batch, logits, _ = rollouts(shape, per_token, left)
    model = literal.Says(logits)
    options = {"kl_coef": kl_coef, "entropy_coef": entropy_coef, "normalise": normalise}
    loss, facts = policy(model, batch, clip_low=clip, clip_high=clip + 0.1, **options)
    loss.backward()

    exact = logits.double().requires_grad_()
    expected = literal.policy(exact, batch, clip, clip + 0.1, **options)
    (expected["loss"] + 0 * exact.sum()).backward()
    torch.testing.assert_close(loss.item(), float(expected["loss"].detach()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.logits.grad.double(), exact.grad, rtol=1e-3, atol=1e-5)
    assert facts["tokens"] == int(batch["mask"].sum())
    asked = literal.tokens_of(batch)
    assert facts["weight"] == (len(asked) if normalise == "token" else len({b for b, _ in asked}))
    assert set(facts) == {"tokens", "weight", "kl", "kl_old", "clip_fraction", "entropy", "ratio"}
    for name, value in expected.items():
        if name != "loss":
            assert not facts[name].requires_grad
            torch.testing.assert_close(facts[name].item(), float(value.detach()), rtol=1e-3, atol=1e-5)


@given(literal.shapes(), st.sampled_from(["token", "sequence"]))
def test_ppo_adds_the_values(shape, normalise):
    batch, logits, values = rollouts(shape, per_token=True)
    model = literal.Says(logits, values)
    loss, facts = ppo(model, batch, value_coef=0.5, value_clip=0.3, normalise=normalise)
    loss.backward()
    without, _ = policy(literal.Says(logits), batch, normalise=normalise)

    exact = values.double().requires_grad_()
    if normalise == "token":
        expected = literal.value_loss(exact, batch, 0.3)
        (0.5 * expected + 0 * exact.sum()).backward()
        torch.testing.assert_close(facts["value_loss"].item(), float(expected.detach()), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.values.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)
    assert loss.item() == pytest.approx(without.item() + 0.5 * facts["value_loss"].item(), rel=1e-4, abs=1e-5)

    asked = literal.tokens_of(batch)
    returns = torch.tensor([batch["returns"][b, t] for b, t in asked]).double()
    left = returns - torch.tensor([values[b, t - 1] for b, t in asked]).double()
    spread = returns.var(correction=0) if asked else torch.zeros(())
    explained = 1 - left.var(correction=0) / spread if len(asked) > 1 else 0.0
    assert facts["explained_variance"].item() == pytest.approx(float(explained), rel=1e-3, abs=1e-4)


def test_the_first_step_is_reinforce():
    batch, logits, _ = rollouts((3, 6, 5, 12))
    model = literal.Says(logits)
    batch["old_logp"] = token_logprobs(model, batch)
    loss, facts = policy(model, batch)
    loss.backward()
    again = literal.Says(logits)
    logp = log_probabilities(again.logits, batch["ids"][:, 1:])
    where = batch["targets"][:, 1:]
    (-(logp * batch["advantages"][:, None])[where].sum() / where.sum()).backward()
    torch.testing.assert_close(model.logits.grad, again.logits.grad)
    assert facts["weight"] > 3
    assert facts["clip_fraction"] == 0 and facts["ratio"].item() == pytest.approx(1, abs=1e-6)
    assert facts["kl_old"].item() == pytest.approx(0, abs=1e-6)


def test_the_clip_stops_the_gradient_on_its_side_only():
    ids = torch.zeros(1, 2, dtype=torch.long)
    mask = torch.ones_like(ids, dtype=torch.bool)
    logits = torch.zeros(1, 1, 2)
    for shift, advantage, moves in [(-1.0, 1, False), (-1.0, -1, True), (1.0, 1, True), (1.0, -1, False)]:
        model = literal.Says(logits)
        old = token_logprobs(model, {"ids": ids, "mask": mask, "targets": mask}) + shift
        advantages = torch.tensor([float(advantage)])
        batch = {"ids": ids, "mask": mask, "targets": mask, "advantages": advantages, "old_logp": old}
        loss, facts = policy(model, batch)
        loss.backward()
        assert bool(model.logits.grad.any()) is moves
        assert facts["clip_fraction"] == (0 if moves else 1)


@given(st.integers(2, 6), st.integers(0, 999))
def test_the_estimate_is_the_divergence_on_average(vocabulary, seed):
    g = literal.generator(seed)
    p, q = (literal.randn(vocabulary, g=g).double().log_softmax(-1) for _ in range(2))
    estimates = kl_estimate(p, q)
    assert (estimates >= 0).all()
    exact = (p.exp() * (p - q)).sum()
    torch.testing.assert_close((p.exp() * estimates).sum(), exact, rtol=1e-9, atol=1e-12)


@given(st.integers(2, 6), st.floats(0.1, 200), st.integers(0, 999))
def test_entropy_is_the_definition_and_has_a_gradient(vocabulary, scale, seed):
    logits = (scale * literal.randn(3, vocabulary, g=literal.generator(seed))).requires_grad_()
    found = entropy(logits)
    found.sum().backward()
    exact = torch.distributions.Categorical(logits=logits.detach().double()).entropy()
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)
    assert logits.grad.isfinite().all()


def test_unlikely_prompts_do_not_overflow():
    """The reference's entry of a prompt's token is 0, and the token may be as unlikely as exp(-300)."""
    logits = torch.zeros(1, 3, 2)
    logits[0, 0, 0] = -300.0
    model = literal.Says(logits)
    batch = {"ids": torch.zeros(1, 4, dtype=torch.long), "mask": torch.ones(1, 4, dtype=torch.bool)}
    batch["targets"] = torch.tensor([[False, False, True, True]])
    batch |= {"advantages": torch.ones(1), "old_logp": token_logprobs(model, batch)}
    batch |= reference_logprobs(model, batch)
    loss, _ = policy(model, batch, kl_coef=0.1)
    loss.backward()
    assert loss.isfinite() and model.logits.grad.isfinite().all()


@pytest.mark.parametrize("normalise", ["token", "sequence"])
def test_micro_batches_add_up_by_weight(normalise):
    batch, logits, values = rollouts((4, 6, 5, 8))
    whole, facts = ppo(literal.Says(logits, values), batch, normalise=normalise)
    parts = [
        ppo(
            literal.Says(logits[i : i + 1], values[i : i + 1]),
            {k: x[i : i + 1] for k, x in batch.items()},
            normalise=normalise,
        )
        for i in range(4)
    ]
    weight = sum(f["weight"] for _, f in parts)
    assert weight == facts["weight"]
    assert whole.item() == pytest.approx(sum(x.item() * f["weight"] for x, f in parts) / weight, rel=1e-4)
    means = set(facts) - {"tokens", "weight", "explained_variance"}  # which is a ratio of the batch's own
    assert len(means) == 6
    for name in means:
        mean = sum(f[name].item() * f["weight"] for _, f in parts) / weight
        assert facts[name].item() == pytest.approx(mean, rel=1e-3, abs=1e-5), name


def test_left_padding_changes_no_log_probability():
    model = build_model("tiny", vocab_size=32, context=32, seed=0)
    ids = torch.randint(0, 32, (1, 10), generator=literal.generator(9))
    mask = torch.ones_like(ids, dtype=torch.bool)
    targets = torch.arange(10)[None] >= 4
    plain = token_logprobs(model, {"ids": ids, "mask": mask, "targets": targets})
    left = {"ids": ids, "mask": mask, "targets": targets}
    left = {k: torch.cat([torch.zeros(1, 5, dtype=x.dtype), x], 1) for k, x in left.items()}
    padded = token_logprobs(model, left)
    assert plain.shape == (1, 10) and not plain[:, :4].any() and not padded[:, :9].any()
    torch.testing.assert_close(padded[:, 5:], plain, rtol=1e-5, atol=1e-5)


def test_a_value_stands_before_its_token():
    g = literal.generator(10)
    batch = literal.rows(3, 6, 4, g)
    values = literal.randn(3, 5, g=g)
    found = token_values(literal.Says(literal.randn(3, 5, 4, g=g), values), batch)
    assert found.shape == (3, 6) and not found.requires_grad
    for b in range(3):
        for t in range(6):
            asked = t > 0 and batch["targets"][b, t]
            assert found[b, t] == (values[b, t - 1] if asked else 0)


def without(batch, *names):
    return {k: x for k, x in batch.items() if k not in names}


def test_errors():
    batch, logits, _ = rollouts((2, 5, 4, 11))
    model = literal.Says(logits)
    with pytest.raises(SteepestError, match="old_logp is missing"):
        policy(model, without(batch, "old_logp"))
    with pytest.raises(SteepestError, match="advantages is missing"):
        policy(model, without(batch, "advantages"))
    with pytest.raises(SteepestError, match=r"kl_coef above 0 needs reference_logp"):
        policy(model, without(batch, "reference_logp"), kl_coef=0.1)
    with pytest.raises(SteepestError, match=r"advantages of a policy batch .* \(2, 5\), got \(2, 3\)"):
        policy(model, {**batch, "advantages": torch.zeros(2, 3)})
    with pytest.raises(SteepestError, match=r"a value head, whose output has `.values` of shape \(2, 4\)"):
        ppo(model, batch)
    assert "kl" not in policy(model, without(batch, "reference_logp"))[1]
