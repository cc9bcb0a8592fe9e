"""Students of a bridge between Gaussians, where teacher, inner optimum and best generator are known in closed form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from i2sb.batch import Batch
from i2sb.bridge import Bridge
from i2sb.config import SamplingOptions
from i2sb.distillation import Judges, Student
from i2sb.formulation import SchroedingerBridge
from i2sb.loss import matching_error

FLOAT = torch.float64
EYE = torch.eye(2, dtype=FLOAT)
N = 8


@dataclass(frozen=True)
class Law:
    """A Gaussian of pairs (x0, x1) of two channels: x1 ~ N(m1, V1), x0 = A x1 + a + B z."""

    m1: Tensor
    V1: Tensor
    A: Tensor
    a: Tensor
    BB: Tensor  # B Bᵀ

    @property
    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """The mean of x0, its covariance, and that of x0 with x1."""
        return self.A @ self.m1 + self.a, self.A @ self.V1 @ self.A.T + self.BB, self.A @ self.V1


def posterior_law() -> Law:
    """x0 ~ N(m, C), x1 = K x0 + noise, read backwards: x0 | x1 is the posterior."""
    m, C = torch.tensor([0.2, -0.1], dtype=FLOAT), torch.tensor([[1.0, 0.5], [0.5, 0.75]], dtype=FLOAT)
    K = torch.tensor([[0.7, 0.2], [0.1, 0.8]], dtype=FLOAT)
    V1 = K @ C @ K.T + 0.2 * EYE
    gain = C @ K.T @ torch.linalg.inv(V1)
    return Law(K @ m, V1, gain, m - gain @ K @ m, C - gain @ K @ C)


POSTERIOR = posterior_law()


class BestDenoiser:
    """The bridge's optimum for a law of pairs: E[x0 | x_t], or E[x0 | x_t, x1] where it is told x1, as a network."""

    def __init__(self, bridge: Bridge, law: Law, *, ot_ode: bool, cond_x1: bool) -> None:
        m0, V0, C01 = law.moments
        self.bridge, weights = bridge, []
        for n in range(N):
            a, b = bridge.mu_x0[n], bridge.mu_x1[n]
            noise = torch.zeros_like(EYE) if ot_ode else bridge.std_sb[n] ** 2 * EYE
            mean, with_x0 = a * m0 + b * law.m1, a * V0 + b * C01.T
            spread = a**2 * V0 + a * b * (C01 + C01.T) + b**2 * law.V1 + noise
            if cond_x1:
                with_x1 = a * C01 + b * law.V1
                spread = torch.cat([torch.cat([spread, with_x1], 1), torch.cat([with_x1.T, law.V1], 1)])
                mean, with_x0 = torch.cat([mean, law.m1]), torch.cat([with_x0, C01.T])
            gain = torch.linalg.solve(spread, with_x0).T
            weights.append((gain, m0 - gain @ mean))
        self.gains, self.offsets = (torch.stack(part) for part in zip(*weights, strict=True))

    def __call__(self, xt, step, cond=None):
        seen = (xt if cond is None else torch.cat([xt, cond], 1)).flatten(1)
        x0 = torch.einsum("bij,bj->bi", self.gains[step], seen) + self.offsets[step]
        return self.bridge.compute_label(step, x0.view_as(xt), xt)

    def error(self, law: Law, n: int, *, ot_ode: bool, cond_x1: bool) -> Tensor:
        """Its expected squared error of label n under another law of pairs, a mean over channels."""
        m0, V0, C01 = law.moments
        a, b = self.bridge.mu_x0[n], self.bridge.mu_x1[n]
        of_xt, of_x1 = self.gains[n][:, :2], self.gains[n][:, 2:] if cond_x1 else torch.zeros_like(EYE)
        on_x0, on_x1 = a * of_xt - EYE, b * of_xt + of_x1  # of the error of x0
        mean = on_x0 @ m0 + on_x1 @ law.m1 + self.offsets[n]
        spread = on_x0 @ V0 @ on_x0.T + on_x1 @ law.V1 @ on_x1.T + on_x0 @ C01 @ on_x1.T + on_x1 @ C01.T @ on_x0.T
        if not ot_ode:
            spread = spread + self.bridge.std_sb[n] ** 2 * of_xt @ of_xt.T
        return (spread.trace() + mean @ mean) / (2 * self.bridge.std_fwd[n] ** 2)


class Linear(nn.Module):
    """A network of one affine map a step: of the state, the condition and a student's noise."""

    def __init__(self, images: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(N, 2, 2 * images, dtype=FLOAT))
        self.bias = nn.Parameter(torch.zeros(N, 2, dtype=FLOAT))

    def forward(self, xt, step, cond=None):
        seen = (xt if cond is None else torch.cat([xt, cond], 1)).flatten(1)
        return (torch.einsum("bij,bj->bi", self.weight[step], seen) + self.bias[step]).view_as(xt)


class Draws:
    """Standard normal draws from a seed, and what was asked for."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=self.generator, dtype=x.dtype)

    def steps(self, count: int) -> Tensor:
        return torch.randint(N, (count,), generator=self.generator)

    def batch(self, count: int, *, cond_x1: bool) -> Batch:
        """Degraded images alone."""
        root = torch.linalg.cholesky(POSTERIOR.V1)
        x1 = POSTERIOR.m1 + self(torch.empty(count, 2, dtype=FLOAT)) @ root.T
        x1 = x1[:, :, None, None]
        return Batch(x0=None, x1=x1, mask=None, cond=x1 if cond_x1 else None, shown=x1)


KINDS = {
    "sde": {"ot_ode": False, "cond_x1": False},
    "sde told x1": {"ot_ode": False, "cond_x1": True},
    "ot-ode": {"ot_ode": True, "cond_x1": False},
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def make_student(kind, nfe=1):
    return Student(Bridge(N, 16.0, dtype=FLOAT), nfe=nfe, **kind)


def generator_of(student: Student, *, spread: float = 1.0) -> Linear:
    """The student's network of one evaluation whose images have the posterior's law, its noise scaled."""
    net = Linear(3 if student.cond_x1 else 2)
    n, bridge = N - 1, student.bridge
    # the last step is to index 0: x = (1 − s) x̂0 + s x1 with s = σ_0²/σ_n², and x̂0 = x1 − σ_n · net
    s = (bridge.std_fwd[0] / bridge.std_fwd[n]) ** 2
    scale = (1 - s) * bridge.std_fwd[n]
    with torch.no_grad():
        net.weight[n, :, :2] = (EYE - POSTERIOR.A) / scale
        net.weight[n, :, -2:] = -spread * torch.linalg.cholesky(POSTERIOR.BB) / scale
        net.bias[n] = -POSTERIOR.a / scale
    return net


def law_of(student: Student, net: nn.Module) -> Law:
    """The law of a linear student's pairs, differentiable: read off its images of a basis."""
    basis = torch.cat([torch.zeros(1, 2, dtype=FLOAT), EYE])[:, :, None, None]

    def run(x1: Tensor, z: Tensor) -> Tensor:
        batch = Batch(x0=None, x1=x1, mask=None, cond=x1 if student.cond_x1 else None, shown=x1)
        return student.generate(net, batch, lambda x: z, gradients=True)[:, :, 0, 0]

    of_x1, of_z = run(basis, 0 * basis), run(0 * basis, basis)
    A, B = (of_x1[1:] - of_x1[0]).T, (of_z[1:] - of_z[0]).T
    return Law(POSTERIOR.m1, POSTERIOR.V1, A, of_x1[0], B @ B.T)


def objective(student: Student, law: Law) -> Tensor:
    """Prop. 3.3 in closed form: how much worse the teacher denoises this law of pairs than their own optimum does."""
    kind = {"ot_ode": student.ot_ode, "cond_x1": student.cond_x1}
    teacher, inner = (BestDenoiser(student.bridge, one, **kind) for one in (POSTERIOR, law))
    return torch.stack([teacher.error(law, n, **kind) - inner.error(law, n, **kind) for n in range(N)]).mean()


def judge(student: Student, law: Law) -> None:
    kind = {"ot_ode": student.ot_ode, "cond_x1": student.cond_x1}
    student.judges = Judges(*(BestDenoiser(student.bridge, one, **kind) for one in (POSTERIOR, law)))


@each_kind
def test_the_objective_is_zero_at_the_posterior_and_above_it_elsewhere(kind):
    student = make_student(kind)
    net = generator_of(student)
    law = law_of(student, net)
    for mine, want in ((law.A, POSTERIOR.A), (law.a, POSTERIOR.a), (law.BB, POSTERIOR.BB)):
        torch.testing.assert_close(mine, want, rtol=0, atol=1e-12)
    assert abs(objective(student, law).item()) < 1e-12
    for spread in (0.5, 0.9, 1.1):
        assert objective(student, law_of(student, generator_of(student, spread=spread))) > 1e-4

    # and so is what is computed of a batch, whatever is drawn
    judge(student, law)
    draws = Draws(0)
    batch = draws.batch(64, **{"cond_x1": kind["cond_x1"]})
    assert abs(student.loss(net, draws.steps(64), batch, draws).item()) < 1e-12


@each_kind
def test_its_gradient_is_that_of_the_closed_form(kind):
    """Within five standard errors of a mean over draws, in every parameter; away from the optimum."""
    student = make_student(kind)
    net = generator_of(student, spread=0.6)
    with torch.no_grad():
        net.weight += 0.1 * Draws(1)(net.weight)
        net.bias += 0.1
    parameters = list(net.parameters())
    want = torch.cat(
        [g[N - 1].flatten() for g in torch.autograd.grad(objective(student, law_of(student, net)), parameters)]
    )
    judge(student, Law(*(x.detach() for x in vars(law_of(student, net)).values())))
    draws, found = Draws(2), []
    for _ in range(50):
        batch = draws.batch(2000, cond_x1=kind["cond_x1"])
        loss = student.loss(net, draws.steps(2000), batch, draws)
        found.append(torch.cat([g[N - 1].flatten() for g in torch.autograd.grad(loss, parameters)]))
    grads = torch.stack(found)
    error = grads.std(dim=0) / len(found) ** 0.5
    assert want.abs().max() > 0.01
    assert ((grads.mean(dim=0) - want).abs() < 5 * error).all(), (grads.mean(dim=0) - want) / error


def train(student: Student, *, subtract: bool = True, iterations: int = 600, batch_size: int = 256) -> Law:
    """Train a linear student from its teacher's weights by Algorithm 1, with the losses of the program."""
    kind = {"ot_ode": student.ot_ode, "cond_x1": student.cond_x1}
    teacher = BestDenoiser(student.bridge, POSTERIOR, **kind)
    inner, net = (Linear(1 + student.cond_x1 + sees_noise) for sees_noise in (False, True))
    with torch.no_grad():
        for network in (inner, net):
            # label n = (x_t − x̂0)/σ_n
            network.weight[:, :, : teacher.gains.shape[2]] = -teacher.gains / student.bridge.std_fwd[:, None, None]
            network.weight[:, :, :2] += EYE / student.bridge.std_fwd[:, None, None]
            network.bias.copy_(-teacher.offsets / student.bridge.std_fwd[:, None])
    student.judges = Judges(teacher, inner)
    optimizers = {network: torch.optim.Adam(network.parameters(), betas=(0.5, 0.99)) for network in (inner, net)}
    draws = Draws(3)
    for iteration in range(iterations):
        for learner in [inner] * 5 + [net]:
            optimizer = optimizers[learner]
            optimizer.param_groups[0]["lr"] = 0.03 * (1 - iteration / iterations)
            batch, step = draws.batch(batch_size, cond_x1=student.cond_x1), draws.steps(batch_size)
            if learner is inner:
                loss = student.inner_loss(net, step, batch, draws, inner=inner)
            elif subtract:
                loss = student.loss(net, step, batch, draws)
            else:
                x0 = student.generate(net, batch, draws, gradients=True)
                xt = student.bridge.q_sample(step, x0, batch.x1, ot_ode=student.ot_ode, randn=draws)
                loss = matching_error(student.bridge, teacher, step, x0, xt, cond=batch.cond)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return law_of(student, net)


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, id=name, marks=() if name == "sde" else pytest.mark.slow) for name, kind in KINDS.items()],
)
def test_a_trained_student_has_the_posteriors_law(kind):
    """So many answers to one image are told from the posterior's by no mean and no covariance."""
    law, count = train(make_student(kind)), 2000
    x1 = torch.tensor([0.8, -0.5], dtype=FLOAT)
    answers = law.A @ x1 + law.a + Draws(4)(torch.empty(count, 2, dtype=FLOAT)) @ torch.linalg.cholesky(law.BB).T
    variances = POSTERIOR.BB.diagonal()
    error = (answers.mean(dim=0) - POSTERIOR.A @ x1 - POSTERIOR.a).abs()
    assert (error < 5 * (variances / count).sqrt()).all()
    # Of Gaussians, the variance of an element of the covariance of `count` draws
    spread = ((variances[:, None] * variances + POSTERIOR.BB**2) / count).sqrt()
    assert ((answers.T.cov() - POSTERIOR.BB).abs() < 5 * spread).all()


def test_without_the_subtracted_term_a_student_has_one_answer():
    law = train(make_student(KINDS["sde"]), subtract=False)
    assert law.BB.trace() < 0.01 * POSTERIOR.BB.trace()


@pytest.mark.parametrize("sees_noise", [True, False])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_student_of_several_steps_is_the_chain_of_posterior_steps(kind, sees_noise):
    student = Student(Bridge(N, 16.0, dtype=FLOAT), nfe=3, sees_noise=sees_noise, **kind)
    net, bridge, ot_ode = Linear(1 + kind["cond_x1"] + sees_noise), student.bridge, kind["ot_ode"]
    with torch.no_grad():
        net.weight += 0.3 * Draws(1)(net.weight)
    batch, draws = Draws(2).batch(5, cond_x1=kind["cond_x1"]), Draws(3)
    x, grid = batch.x1, [7, 5, 2, 0]
    for n, nprev in pairwise(grid):
        beside = [*([] if batch.cond is None else [batch.cond]), *([draws(x)] if sees_noise else [])]
        step = torch.full((5,), n)
        x0 = bridge.compute_pred_x0(step, x, net(x, step, cond=torch.cat(beside, 1) if beside else None))
        x = bridge.p_posterior(nprev, n, x, x0, ot_ode=ot_ode, randn=draws)
    made = student.generate(net, batch, Draws(3), gradients=True)
    assert torch.equal(made, x)
    made.sum().backward()
    assert [bool((net.weight.grad[n] != 0).any()) for n in range(N)] == [n in grid[:-1] for n in range(N)]
    # and it is what is restored
    options = student.settle(SamplingOptions())
    assert options.nfe == 3 and torch.equal(student.sample(net, batch, options, Draws(3)).x0, x)
    assert student.draws_noise(options) == (sees_noise or not ot_ode)


def test_what_is_known_of_an_image_with_a_hole_stays():
    """In training to the last bit, and only the hole counts."""
    student, net = make_student(KINDS["sde"]), Linear(2)
    with torch.no_grad():
        net.weight += 0.3 * Draws(1)(net.weight)
    batch = Draws(2).batch(4, cond_x1=False)
    mask = torch.tensor([1.0, 0, 1, 0], dtype=FLOAT)[:, None, None, None]
    batch = replace(batch, mask=mask)
    made = student.generate(net, batch, Draws(3), gradients=False)
    assert [bool(same) for same in (made == batch.x1).flatten(1).all(1)] == [False, True, False, True]
    judges = [Linear(1), Linear(1)]
    with torch.no_grad():
        for judge_, scale in zip(judges, (1, 2), strict=True):
            judge_.bias += scale
    student.judges = Judges(*judges)
    step, draws = torch.tensor([1, 2, 3, 4]), Draws(5)
    found = student.loss(net, step, batch, draws)
    draws = Draws(5)
    x0 = student.generate(net, batch, draws, gradients=False)
    label = student.bridge.compute_label(step, x0, student.bridge.q_sample(step, x0, batch.x1, randn=draws))
    want = ((1 - label) ** 2 - (2 - label) ** 2)[mask.flatten() == 1].sum() / label.numel()
    torch.testing.assert_close(found, want)


def test_inner_updates_leave_the_student_alone():
    student, net, inner = make_student(KINDS["sde"]), Linear(2), Linear(1)
    batch, draws = Draws(2).batch(4, cond_x1=False), Draws(3)
    loss = student.inner_loss(net, torch.arange(4), batch, draws, inner=inner)
    loss.backward()
    assert net.weight.grad is None and inner.weight.grad.abs().sum() > 0
    draws = Draws(3)
    pairs = replace(batch, x0=student.generate(net, batch, draws, gradients=False))
    bridge = SchroedingerBridge(student.bridge)
    assert loss == bridge.loss(inner, torch.arange(4), pairs, draws)
