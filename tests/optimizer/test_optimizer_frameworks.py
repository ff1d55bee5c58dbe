"""Other people's code takes it: transformers' Trainer and torch's checkpoints; and a user's own rule runs."""

from __future__ import annotations

import copy

import pytest
import torch
from optimizer_cases import Tied, apart, owned, parameters, snapshot, walk
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import steepest
from steepest.contract import Hyper, Scope, zeros
from steepest.ops import lerp, sign
from steepest.rules import rule


@rule(
    slots={"m": zeros},
    scope=Scope.ELEMENT,
    paper="arXiv:2305.14342, with a unit Hessian",
    hyper={"lr": Hyper(1e-3, low=0.0), "beta1": Hyper(0.9, low=0.0, high=1.0), "weight_decay": Hyper(0.0)},
)
def slow_sign(p, g, s, h):
    m = lerp(s.m, g, 1 - h.beta1)
    return sign(m), {"m": m}


@pytest.mark.parametrize("engine", ["reference", "foreach"])
def test_a_rule_of_one_s_own_runs_like_any_other(engine):
    ours, theirs = parameters(), parameters()
    opt = steepest.Optimizer(ours, rule=slow_sign, lr=0.1, beta1=0.8, engine=engine)
    walk(opt, 4)
    walk(steepest.Signum(theirs, lr=0.1, momentum=0.8), 4)
    assert apart(ours, theirs) == 0.0
    assert opt.param_groups[0]["rule"] == "slow_sign"
    twin = copy.deepcopy(opt)
    assert snapshot(twin) == snapshot(opt)
    with pytest.raises(
        steepest.SteepestError, match="unknown option of slow_sign 'beta'; did you mean 'beta1'"
    ):
        steepest.Optimizer(parameters(), rule=slow_sign, beta=0.5)


def test_a_rule_of_one_s_own_may_be_a_route():
    opt = steepest.Optimizer(
        Tied(), routes=[steepest.Route("proj.*", slow_sign, lr=0.1), steepest.Route("*", "adamw")]
    )
    walk(opt, 2)
    assert {row[2] for row in opt.routing()} == {"slow_sign", "adamw"}


def test_trainer_takes_it_and_resumes_it(tmp_path):
    import transformers
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    tokens = torch.randint(0, 32, (16, 8))
    data = [{"input_ids": row, "labels": row} for row in tokens]

    def trainer(steps):
        torch.manual_seed(0)
        shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **shape))
        opt = steepest.AdamW(model.named_parameters(), lr=0.01, max_grad_norm=1.0)
        args = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=steps,
            per_device_train_batch_size=4,
            use_cpu=True,
            report_to="none",
            save_steps=2,
            disable_tqdm=True,
            max_grad_norm=0.0,
        )
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 4)
        return Trainer(model=model, args=args, train_dataset=data, optimizers=(opt, scheduler)), opt

    whole, opt = trainer(4)
    before = copy.deepcopy(whole.model.state_dict())
    assert whole.train().training_loss < 10
    assert opt.committed == 4 and opt.skipped == 0
    assert any(not torch.equal(v, before[k]) for k, v in whole.model.state_dict().items())
    resumed, other = trainer(4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert other.committed == 4 and snapshot(other) == snapshot(opt)


def test_torch_s_distributed_checkpoint_reads_its_state():
    model = Tied()
    opt = steepest.AdamW(model.named_parameters(), lr=0.1)
    before = snapshot(opt)
    state = get_optimizer_state_dict(model, opt)
    assert snapshot(opt) == before  # reading is not a step
    names = {name for name, _ in model.named_parameters()}
    assert set(state["state"]) == names and set(state["state"]["norm.bias"]) == {"step", "m", "v"}
    walk(opt, 2)
    state = get_optimizer_state_dict(model, opt)
    for name, p in model.named_parameters():
        assert torch.equal(state["state"][name]["m"], opt.state[p]["m"])
    assert {g["rule"] for g in state["param_groups"]} == {"adamw"} and len(owned(opt)) == len(names)
