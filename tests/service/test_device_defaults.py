"""The engine's limits that follow from the device if they are not set."""

import pytest
import torch

from llava_serving.service.device_defaults import DeviceDefaults, device_defaults, engine_config
from llava_serving.settings import Settings


@pytest.mark.parametrize(
    ("memory_gib", "capability", "expected"),
    [
        (15.0, (7, 5), DeviceDefaults(16, 512)),  # T4
        (39.6, (8, 0), DeviceDefaults(64, 1024)),  # A100 with 40 GB
        (79.6, (9, 0), DeviceDefaults(64, 2048)),  # H100
    ],
)
def test_defaults_follow_the_gpu(memory_gib: float, capability: tuple[int, int], expected: DeviceDefaults) -> None:
    assert device_defaults(memory_gib, capability) == expected


def test_settings_override_the_defaults_of_a_cpu() -> None:
    cpu = torch.device("cpu")
    config = engine_config(Settings(), cpu)
    assert (config.max_num_seqs, config.max_num_batched_tokens) == (16, 512)
    assert (config.static_decode, config.overlap) == (False, False)
    assert engine_config(Settings(max_num_seqs=700), cpu).max_num_batched_tokens == 700
    assert engine_config(Settings(max_num_batched_tokens=7), cpu).max_num_seqs == 7
