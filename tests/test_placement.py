"""Which device trains: chosen from what is visible, or refused with the remedy."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, field

import pytest
import torch

from fedattn.config import LOCAL_KEYS
from fedattn.errors import ConfigError, RefusalError
from fedattn.placement import TorchCuda, choose, usable_device
from fedattn.randomness import Randomness
from fedattn.train import noise_only, train_locally

GPU = 2**30


@dataclass
class Machine:
    """A machine with CUDA devices of so much free memory, some of which do not compute."""

    free: list[int] = field(default_factory=list)
    broken: set[int] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    def count(self) -> int:
        self.asked.append("count")
        return len(self.free)

    def name(self, index: int) -> str:
        return f"Orin {index}"

    def free_bytes(self, index: int) -> int:
        self.asked.append("free")
        return self.free[index]

    def works(self, index: int) -> bool:
        self.asked.append(f"works {index}")
        return index not in self.broken


def refusal(wanted, machine):
    with pytest.raises(RefusalError) as caught:
        choose(wanted, machine)
    assert caught.value.rule == "device"
    return str(caught.value)


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
@pytest.mark.parametrize(
    ("free", "broken", "expected"),
    [
        ([GPU], set(), "cuda:0"),
        ([GPU, 3 * GPU, 2 * GPU], set(), "cuda:1"),
        ([GPU, 3 * GPU, 2 * GPU], {1}, "cuda:2"),
        ([GPU, 3 * GPU, 2 * GPU], {1, 2}, "cuda:0"),
        ([GPU, GPU], set(), "cuda:0"),
        ([0, 0], {0}, "cuda:1"),
    ],
)
def test_the_working_device_with_the_most_free_memory_is_chosen(wanted, free, broken, expected):
    assert choose(wanted, Machine(free, broken)) == expected


def test_without_a_working_cuda_device_auto_is_the_cpu_and_says_why(caplog):
    with caplog.at_level(logging.WARNING):
        assert choose("auto", Machine()) == "cpu"
        assert caplog.text == ""
        assert choose("auto", Machine([GPU], {0})) == "cpu"
    assert "no CUDA device computes, training on the CPU: cpu, cuda:0 (Orin 0)" in caplog.text


def test_without_a_working_cuda_device_cuda_is_refused():
    assert refusal("cuda", Machine()) == (
        "device: `device: cuda` found no CUDA device that computes; this process sees cpu alone. "
        "Set `device: auto` or one of these, or mend driver, CUDA_VISIBLE_DEVICES or the torch "
        "build"
    )


def test_a_named_device_is_taken_whatever_is_free_elsewhere():
    machine = Machine([GPU, 3 * GPU])
    assert choose("cuda:0", machine) == "cuda:0"
    assert "works 1" not in machine.asked


@pytest.mark.parametrize("index", [2, 9, 10**9])
def test_a_named_device_that_is_not_there_is_refused_with_what_is(index):
    text = refusal(f"cuda:{index}", Machine([GPU, GPU]))
    assert text.startswith(
        f"device: `device: cuda:{index}` is not there; this process sees cpu, cuda:0 (Orin 0), "
        "cuda:1 (Orin 1). Set `device: auto` or one of these"
    )


def test_a_named_device_that_does_not_compute_is_refused_and_no_other_taken():
    text = refusal("cuda:1", Machine([GPU, GPU], {1}))
    assert "`device: cuda:1` is there but does not compute" in text


def test_the_cpu_asks_nothing_and_one_device_is_not_asked_for_its_memory():
    machine = Machine([GPU])
    assert choose("cpu", machine) == "cpu"
    assert machine.asked == []
    choose("auto", machine)
    assert "free" not in machine.asked


def test_this_machine_answers_every_question():
    """Real torch: whatever is here, a device that is not there neither raises nor works."""
    cuda = TorchCuda()
    missing = cuda.count()
    assert missing == torch.cuda.device_count()
    assert not cuda.works(missing)
    assert cuda.name(missing) == "unknown"
    assert cuda.free_bytes(missing) == 0
    assert choose("auto", cuda) in {"cpu", *(f"cuda:{index}" for index in range(missing))}


def test_the_device_is_chosen_once_a_process():
    assert usable_device("auto") is usable_device("auto")
    assert usable_device("cpu") == torch.device("cpu")


@pytest.fixture
def absent():
    return f"cuda:{torch.cuda.device_count()}"


def test_training_on_a_missing_device_stops_before_anything_is_drawn(
    generator, tokenizer, make_config, make_records, absent
):
    model, randomness = generator(), Randomness.seeded(1)
    before = copy.deepcopy(model.state_dict())
    config = make_config(train__device=absent)
    with pytest.raises(RefusalError, match=f"device: `device: {absent}` is not there"):
        train_locally(model, tokenizer, make_records(3), config, randomness)
    assert randomness.bytes(8) == Randomness.seeded(1).bytes(8)
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())


def test_noise_alone_needs_no_cuda_device(generator, tokenizer, make_config, absent):
    """It is what leaves when a CUDA device fails."""
    made = noise_only(
        generator(), tokenizer, make_config(train__device=absent), Randomness.seeded(1)
    )
    cpu = noise_only(generator(), tokenizer, make_config(), Randomness.seeded(1))
    assert torch.equal(made.delta, cpu.delta)


def test_a_device_places_training_by_its_own_keys(
    generator, tokenizer, make_config, make_records, absent
):
    asked = make_config(train__device=absent, train__threads=7)
    placed = asked.placed({"device": "cpu", "threads": 0, "max_batch_bytes": 1})
    assert (placed.train.device, placed.train.threads, placed.train.max_batch_bytes) == (
        "cpu", 0, 1,
    )  # fmt: skip
    assert placed.placed({key: getattr(asked.train, key) for key in LOCAL_KEYS}) == asked
    records, stream = make_records(6), Randomness.seeded(1)
    one_by_one = train_locally(generator(), tokenizer, records, placed, stream).delta
    config = make_config(train__max_physical_batch=1)
    twin = train_locally(generator(), tokenizer, records, config, Randomness.seeded(1)).delta
    assert torch.equal(one_by_one, twin)


@pytest.mark.parametrize("key", ["local_steps", "expected_batch_size", "weights", "nonsense"])
def test_a_device_cannot_place_what_is_agreed(make_config, key):
    with pytest.raises(ConfigError, match="a device's own keys are clipping, device, max_batch"):
        make_config().placed({key: 1})


def test_training_multiplies_in_full_float32_whatever_the_environment_allowed(
    generator, tokenizer, make_config
):
    torch.set_float32_matmul_precision("high")
    try:
        train_locally(generator(), tokenizer, [], make_config(), Randomness.seeded(1))
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision("highest")
