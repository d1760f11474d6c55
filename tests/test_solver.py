"""Schedules, solvers, noise and guidance against the formulas of docs/model.md, sections 4.4 to 4.7, written out again
here in fp64, and against diffusers' numbers bit for bit."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from tiny_model import TINY_MODEL
from torch import Tensor

from cosmos3_core.checkpoint.model import open_model
from cosmos3_core.contract import InputError
from cosmos3_core.model.packing import Item, Packing
from cosmos3_core.sampling.guidance import combine, guided
from cosmos3_core.sampling.noise import generator, initial_noise
from cosmos3_core.sampling.solver import Solver
from cosmos3_core.sampling.state import Context, State
from cosmos3_core.scenarios import request as requests
from cosmos3_core.scenarios.fields import SCHEDULES

PUBLISHED = {
    "_class_name": "UniPCMultistepScheduler",
    "_diffusers_version": "0.37.1",
    "num_train_timesteps": 1000,
    "solver_order": 2,
    "solver_type": "bh2",
    "predict_x0": True,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "use_karras_sigmas": True,
    "sigma_min": 0.147,
    "sigma_max": 200.0,
    "flow_shift": 1.0,
    "final_sigmas_type": "zero",
    "lower_order_final": True,
    "disable_corrector": [],
    "timestep_spacing": "linspace",
}
DISTILLED_SIGMAS = (1.0, 0.9375, 5 / 6, 0.625)
DISTILLED = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "stochastic_sampling": True,
    "fixed_step_sampler_config": {"sample_type": "sde", "t_list": [*DISTILLED_SIGMAS, 0.0]},
    "fixed_step_requires_explicit_sigmas": True,
}


def solver(schedule: str, steps: int, shift: float = 10.0) -> Solver:
    if schedule == "distilled":
        return Solver.of(schedule, steps, shift, DISTILLED, DISTILLED_SIGMAS)
    return Solver.of(schedule, steps, shift, PUBLISHED)


# Schedules -------------------------------------------------------------------------------------------------------

GOLDEN = {
    ("karras", 35, 10.0): "995 994 993 992 991 990 988 986 984 981 978 975 970 965 958 950 941 929 915 898 877 852 "
    "822 785 742 693 636 572 504 432 361 292 229 174 128",
    ("flow", 35, 10.0): "999 997 993 990 987 983 979 975 971 966 961 956 950 944 937 930 922 913 904 894 882 869 855 "
    "839 821 800 776 748 715 675 626 565 486 381 233",
    ("native", 35, 10.0): "999 996 993 990 987 983 979 975 971 966 961 956 950 944 937 930 922 913 904 893 882 869 "
    "855 838 820 799 775 747 714 673 624 563 483 377 227",
    ("native", 10, 3.0): "999 963 922 874 817 749 666 562 428 249",
    ("native", 7, 10.0): "999 983 961 930 882 799 624",
    ("native", 13, 5.0): "999 983 964 943 918 888 853 810 757 689 599 475 293",
}


@pytest.mark.parametrize(("schedule", "steps", "shift"), GOLDEN)
def test_timesteps_are_the_golden_ones(schedule, steps, shift):
    golden = [int(t) for t in GOLDEN[schedule, steps, shift].split()]
    assert len(golden) == steps
    assert solver(schedule, steps, shift).timesteps == tuple(golden)


def test_the_tail_of_native_shift_5_over_30_steps():
    assert solver("native", 30, 5.0).timesteps[-4:] == (434, 356, 262, 146)


def own_sigmas(schedule: str, n: int, shift: float) -> np.ndarray:
    """In fp64, with the final zero (docs/model.md, section 4.5)."""
    if schedule == "karras":
        ramp = np.linspace(200.0 ** (1 / 7), 0.147 ** (1 / 7), n) ** 7
        sigmas = ramp / (ramp + 1)
    else:
        base = np.linspace(*{"native": (0.999, 0.0), "flow": (1.0, 0.001)}[schedule], n + 1)[:-1]
        sigmas = shift * base / (1 + (shift - 1) * base)
        if sigmas[0] == 1:
            sigmas[0] -= 1e-6
    return np.append(sigmas, 0.0)


@pytest.mark.parametrize("schedule", ["native", "flow", "karras"])
@pytest.mark.parametrize(("steps", "shift"), [(1, 10.0), (2, 3.0), (7, 1.0), (35, 10.0), (50, 3.0), (120, 10.0)])
def test_sigmas_follow_the_formula(schedule, steps, shift):
    found = solver(schedule, steps, shift).sigmas
    np.testing.assert_allclose(found, own_sigmas(schedule, steps, shift), rtol=0, atol=1e-7)
    assert found[-1] == 0.0 and found[0] < 1.0


@pytest.mark.parametrize("schedule", ["native", "flow", "karras"])
def test_the_model_is_told_whole_timesteps_truncated(schedule):
    found = solver(schedule, 23, 4.0)
    assert found.timesteps == tuple(int(1000 * sigma) for sigma in found.sigmas[:-1])
    assert all(type(t) is int for t in found.timesteps)


def test_karras_knows_no_shift_and_the_others_do():
    assert solver("karras", 9, 1.0).sigmas == solver("karras", 9, 10.0).sigmas
    for schedule in ("native", "flow"):
        assert solver(schedule, 9, 1.0).sigmas != solver(schedule, 9, 10.0).sigmas


def test_distilled_sigmas_are_taken_as_they_are():
    found = solver("distilled", 4)
    assert found.sigmas == pytest.approx([*DISTILLED_SIGMAS, 0.0], abs=1e-7)
    assert found.timesteps == pytest.approx([1000, 937.5, 2500 / 3, 625], abs=1e-4)
    assert found.timesteps[1] == 937.5, "distilled models are told fractions"


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_published_config_is_read_without_complaint(schedule, caplog):
    solver(schedule, 4)
    assert caplog.text == ""


def test_every_schedule_is_built():
    assert {name: len(solver(name, 4).timesteps) for name in SCHEDULES} == dict.fromkeys(SCHEDULES, 4)


# What a scheduler_config may say ------------------------------------------------------------------------------------

LATER_KEYS = {"beta_schedule": "linear", "timestep_spacing": "trailing", "shift_terminal": None, "solver_p": None}


@pytest.mark.parametrize("schedule", ["native", "flow", "karras"])
def test_settings_without_effect_are_read(schedule):
    assert Solver.of(schedule, 5, 3.0, PUBLISHED | LATER_KEYS).sigmas == solver(schedule, 5, 3.0).sigmas


def test_without_karras_sigmas_a_config_is_its_own_flow_schedule():
    config = PUBLISHED | {"use_karras_sigmas": False, "flow_shift": 7.0}
    assert Solver.of("karras", 9, 1.0, config).sigmas == solver("flow", 9, 7.0).sigmas


def without(*names: str) -> dict:
    return {name: value for name, value in PUBLISHED.items() if name not in names}


REFUSED = [
    ("karras", PUBLISHED | {"solver_order": 3}, "solver_order is 3, and Cosmos3's is 2"),
    ("native", PUBLISHED | {"disable_corrector": [0]}, "disable_corrector is [0], and Cosmos3's is []"),
    ("flow", PUBLISHED | {"shift_terminal": 0.02}, "shift_terminal is 0.02, and Cosmos3's is None"),
    ("native", without("prediction_type"), "prediction_type is missing, and Cosmos3's is 'flow_prediction'"),
    ("native", {}, "use_flow_sigmas is missing, and Cosmos3's is True"),
    ("native", PUBLISHED | {"solver_oder": 2}, "the setting 'solver_oder' is unknown"),
    ("native", PUBLISHED | {"thresholding": True, "new": 1}, "Cosmos3's is False; the setting 'new' is unknown"),
    (
        "native",
        PUBLISHED | {"_class_name": "DDIMScheduler"},
        "_class_name is 'DDIMScheduler', and this schedule's is 'UniPCMultistepScheduler'",
    ),
    ("native", PUBLISHED | {"use_karras_sigmas": "no"}, "use_karras_sigmas is 'no', not true or false"),
    *(
        ("karras", PUBLISHED | {"sigma_max": value}, f"sigma_max is {value!r}, not a positive number up to 1000")
        for value in (0, -1.0, math.nan, math.inf, 10**400, "200", True, [])
    ),
    ("karras", without("sigma_min"), "sigma_min is None and sigma_max 200.0, which is no range"),
    ("karras", PUBLISHED | {"sigma_min": 300}, "sigma_min is 300 and sigma_max 200.0, which is no range"),
    ("karras", PUBLISHED | {"sigma_min": 199.99999}, "sigma_min and sigma_max are too close for 50 steps"),
    ("distilled", PUBLISHED, "_class_name is 'UniPCMultistepScheduler'"),
    ("distilled", DISTILLED | {"invert_sigmas": True}, "invert_sigmas is True, and Cosmos3's is False"),
    ("distilled", DISTILLED | {"shift": 0}, "shift is 0, not a positive number"),
    ("distilled", DISTILLED | {"stochastic_sampling": 1}, "stochastic_sampling is 1, not true or false"),
    ("distilled", DISTILLED | {"solver_order": 2}, "the setting 'solver_order' is unknown"),
]


@pytest.mark.parametrize(("schedule", "config", "found"), REFUSED)
def test_another_scheduler_is_refused_by_the_names_of_its_settings(schedule, config, found):
    with pytest.raises(InputError) as raised:
        Solver.of(schedule, 50, 3.0, config, DISTILLED_SIGMAS, "some/model/scheduler")
    assert raised.value.asked == "loading some/model/scheduler" and found in raised.value.found
    assert raised.value.next_step == "Use the scheduler folder of the model's own repository"


# diffusers' numbers, bit for bit -----------------------------------------------------------------------------------


def of_diffusers(schedule: str, steps: int, shift: float, config: dict) -> tuple[tuple, tuple, Tensor]:
    """Timesteps, noise levels, and the steps as matrices, which stepping on unit vectors shows."""
    changes = {} if schedule == "karras" else {"use_karras_sigmas": False, "flow_shift": shift}
    theirs = UniPCMultistepScheduler.from_config(config | changes)
    theirs.set_timesteps(steps, sigmas=np.linspace(0.999, 0.0, steps + 1)[:-1] if schedule == "native" else None)
    theirs.set_begin_index(0)
    x, last, *outputs, velocity = torch.eye(5, dtype=torch.float64).unsqueeze(1)  # a batch axis of one
    matrices = []
    for i, timestep in enumerate(theirs.timesteps):
        if i:
            theirs.last_sample, theirs.model_outputs = last, list(outputs)
        after = theirs.step(velocity, timestep, x, return_dict=False)[0]
        rows = (after, theirs.last_sample, *theirs.model_outputs)
        matrices.append(torch.cat([torch.zeros_like(x) if row is None else row for row in rows]))
    return tuple(theirs.timesteps.tolist()), tuple(theirs.sigmas.tolist()), torch.stack(matrices).float()


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int32)


@pytest.mark.parametrize("schedule", ["native", "flow", "karras"])
@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0, 5.0, 10.0, 12.5])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 10, 35, 50, 121])
def test_unipc_is_that_of_diffusers_bit_for_bit(schedule, steps, shift):
    config = PUBLISHED | {"sigma_max": 20 * shift}
    found = Solver.of(schedule, steps, shift, config)
    timesteps, sigmas, update = of_diffusers(schedule, steps, shift, config)
    assert found.timesteps == timesteps and found.sigmas == sigmas
    assert found.update.dtype == torch.float32 and torch.equal(bits(found.update), bits(update))


@pytest.mark.parametrize("shift", [1, 1.0, 3.0])
@pytest.mark.parametrize("sigmas", [DISTILLED_SIGMAS, (1.0,), (0.9, 0.1), tuple(1 - i / 7 for i in range(7))])
def test_fixed_schedules_are_those_of_diffusers_bit_for_bit(sigmas, shift):
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(sigmas=list(sigmas))
    found = Solver.of("distilled", 1, 10.0, DISTILLED | {"shift": shift}, sigmas)
    assert found.timesteps == tuple(theirs.timesteps.tolist()) and found.sigmas == tuple(theirs.sigmas.tolist())


# UniPC -----------------------------------------------------------------------------------------------------------


class OwnUniPC:
    """Order 2, bh2, x0 prediction, in fp64 and with an explicit linear solve (docs/model.md, section 4.6)."""

    def __init__(self, sigmas: np.ndarray):
        self.sigma = sigmas
        self.n = len(sigmas) - 1
        self.m: list[np.ndarray] = []
        self.x_last: np.ndarray | None = None
        self.order = 1

    def half_log_snr(self, i: int) -> float:
        sigma = self.sigma[i]
        return math.inf if sigma == 0 else math.log(1 - sigma) - math.log(sigma)

    def step(self, velocity: np.ndarray, x: np.ndarray, i: int) -> np.ndarray:
        sigma, lam = self.sigma, self.half_log_snr
        prediction = x - sigma[i] * velocity
        if i > 0:
            x = self.correct(prediction, i)
        self.m.append(prediction)
        self.x_last = x
        self.order = 1 if i in (0, self.n - 1) else 2
        h = lam(i + 1) - lam(i)
        e, alpha = math.expm1(-h), 1 - sigma[i + 1]
        result = sigma[i + 1] / sigma[i] * x - alpha * e * prediction
        if self.order == 2:
            r = (lam(i - 1) - lam(i)) / h
            result = result - alpha * e * 0.5 * (self.m[i - 1] - prediction) / r
        return result

    def correct(self, prediction: np.ndarray, i: int) -> np.ndarray:
        sigma, lam, m = self.sigma, self.half_log_snr, self.m
        h = lam(i) - lam(i - 1)
        e, alpha = math.expm1(-h), 1 - sigma[i]
        base = sigma[i] / sigma[i - 1] * self.x_last - alpha * e * m[i - 1]
        change = prediction - m[i - 1]
        if self.order == 1:
            return base - alpha * e * 0.5 * change
        r = (lam(i - 2) - lam(i - 1)) / h
        slope = (m[i - 2] - m[i - 1]) / r
        phi = e / -h - 1
        b = np.array([phi / e, (phi / -h - 0.5) * 2 / e])
        rho = np.linalg.solve(np.array([[1.0, 1.0], [r, 1.0]]), b)
        return base - alpha * e * (rho[0] * slope + rho[1] * change)


GAIN = np.linspace(-0.6, 0.7, 64)
OFFSET = np.cos(np.arange(64.0))
DRIFT = np.sin(3 * np.arange(64.0))
START = torch.randn(64, generator=torch.Generator().manual_seed(3))


def velocity_at(x, sigma: float):
    """A velocity linear in x and sigma; exact in the type of x."""
    gain, offset, drift = (
        (v if isinstance(x, np.ndarray) else torch.from_numpy(v).float()) for v in (GAIN, OFFSET, DRIFT)
    )
    return gain * x + offset + sigma * drift


def ours(found: Solver, x: Tensor, stream: torch.Generator | None = None) -> list[Tensor]:
    """x before every step, and the result."""
    path, stream, memory = [x], stream or generator(0), found.start(x)
    for i, sigma in enumerate(found.sigmas[:-1]):
        x, memory = found.step(velocity_at(x, sigma), x, i, memory, stream)
        path.append(x)
    return path


def independent(sigmas: np.ndarray) -> list[np.ndarray]:
    own, path = OwnUniPC(sigmas), [START.double().numpy()]
    for i in range(own.n):
        path.append(own.step(velocity_at(path[-1], sigmas[i]), path[-1], i))
    return path


def error(found: Tensor, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(found.double().numpy() - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("schedule", ["native", "flow", "karras"])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 35])
def test_unipc_follows_the_formulas_step_by_step(schedule, steps):
    path = ours(solver(schedule, steps), START)
    expected = independent(own_sigmas(schedule, steps, 10.0))
    assert len(path) == steps + 1 == len(expected)
    for i, (x, y) in enumerate(zip(path, expected, strict=True)):
        assert error(x, y) < 1e-6, f"before step {i}"


@pytest.mark.parametrize(("schedule", "steps", "coincide"), [("native", 112, False), ("native", 120, True)])
def test_a_run_whose_first_two_timesteps_coincide_is_not_off_by_one(schedule, steps, coincide):
    found = solver(schedule, steps)
    assert (found.timesteps[0] == found.timesteps[1]) is coincide
    path, expected = ours(found, START), independent(own_sigmas(schedule, steps, 10.0))
    assert error(path[-1], expected[-1]) < 1e-6
    assert max(error(x, y) for x, y in zip(path, expected, strict=True)) < 2e-6


@pytest.mark.parametrize("schedule", ["native", "flow", "karras"])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_the_last_step_returns_the_last_prediction(schedule, steps):
    found = solver(schedule, steps)
    *_, before, result = ours(found, START)
    sigma = torch.tensor(found.sigmas[-2])
    torch.testing.assert_close(result, before - sigma * velocity_at(before, found.sigmas[-2]), rtol=1e-6, atol=1e-6)


def test_a_path_to_one_constant_picture_arrives_at_it():
    """If every prediction is the same x0, v = (x - x0) / sigma, nothing is left to correct."""
    found, target = solver("native", 12), torch.linspace(-2, 2, 64)
    x = (1 - found.sigmas[0]) * target + found.sigmas[0] * START
    memory = found.start(x)
    for i, sigma in enumerate(found.sigmas[:-1]):
        x, memory = found.step((x - target) / sigma, x, i, memory, generator(0))
        along = (1 - found.sigmas[i + 1]) * target + found.sigmas[i + 1] * START
        torch.testing.assert_close(x, along, rtol=0, atol=2e-6)


def test_a_solver_keeps_shape_and_type_and_leaves_its_input_alone():
    found, x = solver("native", 3), START.clone()
    velocity, memory = velocity_at(x, 1.0), found.start(x)
    given = {name: tensor.clone() for name, tensor in memory.items()}
    out, after = found.step(velocity, x, 0, memory, generator(0))
    assert out.shape == (64,) and out.dtype == torch.float32 and after.keys() == memory.keys()
    assert torch.equal(x, START) and torch.equal(velocity, velocity_at(START, 1.0))
    assert all(torch.equal(memory[name], tensor) for name, tensor in given.items())


# The stochastic sampler ------------------------------------------------------------------------------------------


def test_distilled_steps_follow_the_formula_on_the_requests_own_stream():
    found, stream, own = solver("distilled", 4), generator(11), torch.Generator().manual_seed(11)
    path = ours(found, START, stream)
    sigmas, x = [*DISTILLED_SIGMAS, 0.0], START.double()
    for i in range(4):
        x0 = x - sigmas[i] * torch.from_numpy(velocity_at(x.numpy(), sigmas[i]))
        noise = torch.randn(64, generator=own, dtype=torch.float32).double()
        x = (1 - sigmas[i + 1]) * x0 + sigmas[i + 1] * noise
        assert error(path[i + 1], x.numpy()) < 1e-6, f"after step {i}"
    # One draw a step, the last one's too, where it is multiplied by zero.
    assert torch.equal(stream.get_state(), own.get_state())


@pytest.mark.parametrize("stochastic", [True, False])
def test_distilled_steps_are_those_of_diffusers(stochastic):
    config = DISTILLED | {"stochastic_sampling": stochastic}
    theirs = FlowMatchEulerDiscreteScheduler(shift=1.0, stochastic_sampling=stochastic)
    theirs.set_timesteps(sigmas=list(DISTILLED_SIGMAS))
    path = ours(Solver.of("distilled", 4, 10.0, config, DISTILLED_SIGMAS), START, generator(11))
    stream, x = generator(11), START
    for i, timestep in enumerate(theirs.timesteps):
        velocity = velocity_at(x, float(theirs.sigmas[i]))
        (x,) = theirs.step(velocity, timestep, x, return_dict=False, generator=stream)
        assert torch.equal(path[i + 1], x), f"after step {i}"


def test_distilled_steps_depend_on_the_stream_and_unipc_does_not():
    for schedule, same in (("distilled", False), ("native", True)):
        first, second = (ours(solver(schedule, 4), START, generator(seed))[-1] for seed in (1, 2))
        assert torch.equal(first, second) is same


def test_unipc_draws_nothing():
    stream = generator(5)
    ours(solver("native", 4), START, stream)
    assert torch.equal(stream.get_state(), generator(5).get_state())


# Stopping and going on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_solver_serves_several_runs_in_turn(schedule):
    """It remembers nothing: each run's memory is its own, whichever step the other is at."""
    steps, starts = 4, (START, START.flip(0))
    found = solver(schedule, steps)
    alone = [ours(solver(schedule, steps), x, generator(seed)) for seed, x in enumerate(starts)]
    runs = [[x, found.start(x), generator(seed), 0] for seed, x in enumerate(starts)]
    for turn in (0, 0, 1, 0, 1, 1, 0, 1):
        x, memory, stream, i = runs[turn]
        x, memory = found.step(velocity_at(x, found.sigmas[i]), x, i, memory, stream)
        assert torch.equal(x, alone[turn][i + 1]), f"run {turn} after step {i}"
        runs[turn] = [x, memory, stream, i + 1]


def test_memory_is_what_makes_the_difference():
    """A second-order step without its memory takes another path, so the test above cannot pass by accident."""
    found = solver("native", 6)
    x = ours(found, START)[3]
    after, _ = found.step(velocity_at(x, found.sigmas[3]), x, 3, found.start(x), generator(0))
    assert not torch.allclose(after, ours(found, START)[4], rtol=0, atol=1e-5)


REQUEST = requests.resolve({"prompt": "a cup"}, "reference", open_model(TINY_MODEL).facts, int)[0]
ITEMS = (Item("vision", (4, 3, 2, 2), clean=(0,)), Item("sound", (2, 8)))


def state(schedule: str = "native", seed: int = 1, **context) -> State:
    stream, found = generator(seed), solver(schedule, 4)
    noise = initial_noise(ITEMS, stream)
    x = torch.cat([tensor.flatten() for tensor in noise])
    context = Context(REQUEST, Packing(ITEMS, open_model(TINY_MODEL).config, "cpu"), (), **context)
    return State(REQUEST, context, x, found, found.start(x), stream, noise)


def run(state: State, until: int) -> None:
    while state.index < until:
        velocity = velocity_at(state.x, state.solver.sigmas[state.index])
        state.x, state.memory = state.solver.step(velocity, state.x, state.index, state.memory, state.stream)
        state.index += 1


def saved(state: State) -> tuple[dict[str, Tensor], dict]:
    """What it is saved as, as it is read again."""
    tensors, numbers = state.to_tensors()
    assert all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors.values())
    return {name: tensor.clone() for name, tensor in tensors.items()}, json.loads(json.dumps(numbers))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("stop", [0, 1, 2, 3, 4])
def test_a_saved_state_goes_on_bit_for_bit(schedule, stop):
    straight, stopped, resumed = state(schedule), state(schedule), state(schedule, seed=2)
    run(straight, 4)
    run(stopped, stop)
    resumed.restore(*saved(stopped))
    assert resumed.index == stop and resumed.done is (stop == 4)
    assert all(torch.equal(a, b) for a, b in zip(resumed.noise, stopped.noise, strict=True))
    run(resumed, 4)
    assert resumed.done and torch.equal(resumed.x, straight.x)
    assert torch.equal(resumed.stream.get_state(), straight.stream.get_state())


@pytest.mark.parametrize(
    ("schedule", "numbers"), [("native", {"solver": {}}), ("distilled", {"solver": {"step_index": 2}})]
)
def test_a_state_that_0_1_0_saved_is_read(schedule, numbers):
    """It had the solver's own numbers beside the step's, and the same tensors."""
    straight, stopped, resumed = state(schedule), state(schedule), state(schedule, seed=2)
    run(straight, 4)
    run(stopped, 2)
    tensors, _ = saved(stopped)
    assert tensors.keys() - {"x", "stream", "noise.vision", "noise.sound"} == (
        {"solver.memory"} if schedule == "native" else set()
    )
    resumed.restore(tensors, {"index": 2, **numbers})
    run(resumed, 4)
    assert torch.equal(resumed.x, straight.x)


@pytest.mark.parametrize(
    "change",
    [
        {"x": torch.zeros(3)},
        {"x": torch.zeros(64, dtype=torch.float64)},
        {"solver.memory": torch.zeros(2, 64)},
        {"solver.memory": None},
        {"noise.sound": None},
        {"stream": torch.zeros(7, dtype=torch.uint8)},
        {"stream": torch.full_like(generator(0).get_state(), 255)},
        {"strange": torch.zeros(1)},
        {"index": 5},
        {"index": -1},
        {"index": 1.0},
        {"index": None},
    ],
)
def test_a_saved_state_that_does_not_fit_is_refused_whole(change):
    stopped, own = state(), state(seed=2)
    run(stopped, 2)
    before = saved(own)
    tensors, numbers = saved(stopped)
    for name, value in change.items():
        target = numbers if name == "index" else tensors
        target.pop(name, None)
        target |= {} if value is None else {name: value}
    with pytest.raises(InputError, match="do not fit the saved request"):
        own.restore(tensors, numbers)
    after = saved(own)
    assert after[1] == before[1] and all(torch.equal(after[0][name], tensor) for name, tensor in before[0].items())


def test_a_state_shows_its_latents_and_pins_its_clean_frames():
    free = state()
    vision, sound = free.latents()
    assert vision.shape == (4, 3, 2, 2) and sound.shape == (2, 8)
    assert torch.equal(vision, free.noise[0]) and torch.equal(sound, free.noise[1])
    free.pin()
    assert torch.equal(free.latents()[0], free.noise[0]), "nothing is pinned in a run without conditioning"

    mask = torch.zeros(4, 3, 2, 2, dtype=torch.bool)
    mask[:, 0] = True
    pinned = torch.cat((mask.flatten(), torch.zeros(16, dtype=torch.bool)))
    held = state(pinned=pinned, clean=torch.full((64,), 7.0))
    held.pin()
    vision, sound = held.latents()
    assert (vision[:, 0] == 7).all()
    assert torch.equal(vision[:, 1:], held.noise[0][:, 1:]) and torch.equal(sound, held.noise[1])


# Noise -----------------------------------------------------------------------------------------------------------

VISION, SOUND, ACTION = Item("vision", (48, 3, 5, 7)), Item("sound", (8, 33)), Item("action", (16, 10))


def test_noise_is_the_stream_of_torch_randn():
    own = torch.Generator().manual_seed(42)
    found = initial_noise([VISION, SOUND, ACTION], generator(42))
    for tensor, item in zip(found, (VISION, SOUND, ACTION), strict=True):
        assert tensor.dtype == torch.float32 and tensor.device.type == "cpu"
        assert torch.equal(tensor, torch.randn(item.shape, generator=own))


@pytest.mark.parametrize(
    "order", [(VISION, SOUND, ACTION), (ACTION, SOUND, VISION), (SOUND, ACTION, VISION), (ACTION, VISION)]
)
def test_noise_is_drawn_vision_sound_action_whatever_the_order_of_the_items(order):
    own = torch.Generator().manual_seed(42)
    expected = {}
    for item in (VISION, SOUND, ACTION):
        if item in order:
            expected[item.modality] = torch.randn(item.shape, generator=own)
    found = initial_noise(order, generator(42))
    assert [tuple(tensor.shape) for tensor in found] == [item.shape for item in order]
    for tensor, item in zip(found, order, strict=True):
        assert torch.equal(tensor, expected[item.modality])


def test_a_seed_is_the_noise():
    first, again, other = (initial_noise([VISION], generator(seed))[0] for seed in (7, 7, 8))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.isfinite(initial_noise([SOUND], generator(2**63 - 1))[0]).all()


def test_the_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = initial_noise([SOUND], generator(7))[0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(first, initial_noise([SOUND], generator(7))[0])


# Guidance --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timestep", "inside"), [(399, False), (399.999, False), (400, True), (400.0, True), (999, True), (1000, True)]
)
def test_a_closed_interval_includes_both_ends(timestep, inside):
    assert guided(7.0, (400.0, 1000.0), timestep) is inside
    assert guided(7.0, (0.0, 1000.0 - timestep), 1000.0 - timestep) is True
    assert guided(7.0, (0.0, 999.0), 1000) is False


@pytest.mark.parametrize(("timestep", "inside"), [(400, False), (400.001, True), (999, True), (1000, False)])
def test_an_open_interval_is_without_its_ends(timestep, inside):
    assert guided(7.0, (400.0, 1000.0), timestep, "open") is inside


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.5, 7.0])
def test_no_interval_guides_every_step(guidance):
    assert all(guided(guidance, None, t) for t in (0, 1, 500, 1000))


@pytest.mark.parametrize("interval", [None, (0.0, 1000.0)])
def test_guidance_one_never_needs_the_second_branch(interval):
    assert not any(guided(1.0, interval, t) for t in (0, 500, 1000))


def test_guidance_combines_as_written():
    cond, uncond = torch.randn(2, 100, generator=generator(0))
    for guidance in (0.0, 0.5, 4.0, 7.0):
        exact = uncond.double() + guidance * (cond.double() - uncond.double())
        torch.testing.assert_close(combine(cond, uncond, guidance).double(), exact, rtol=0, atol=3e-6)
    assert torch.equal(combine(cond, uncond, 0.0), uncond)


def test_the_image_interval_guides_41_of_50_steps():
    """Shift 3, 50 steps, [400, 1000]."""
    assert sum(guided(7.0, (400.0, 1000.0), t) for t in solver("native", 50, 3.0).timesteps) == 41
