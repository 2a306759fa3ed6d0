"""The page of a DCGM exporter."""

import pytest

from stagemeter.core.errors import StagemeterError
from stagemeter.profiling.readers import energy
from stagemeter.profiling.readers.energy import Energy, PowerMeter, is_power_page
from stagemeter.profiling.readers.prometheus import RestartedError


def dcgm(*gpus: tuple[float | None, float | None]) -> str:
    """Write a page as dcgm-exporter 3.3 does: power in W and energy in mJ of each GPU."""
    lines = []
    for name, kind, which in (("POWER_USAGE", "gauge", 0), ("TOTAL_ENERGY_CONSUMPTION", "counter", 1)):
        lines += [f"# HELP DCGM_FI_DEV_{name} x", f"# TYPE DCGM_FI_DEV_{name} {kind}"]
        for number, values in enumerate(gpus):
            labels = f'gpu="{number}",UUID="GPU-{number}",device="nvidia{number}",modelName="NVIDIA H100",Hostname="a"'
            # Parts of a GPU say the same of it.
            for part in ("", ',GPU_I_PROFILE="1g.10gb",GPU_I_ID="7"'):
                if values[which] is not None:
                    lines.append(f"DCGM_FI_DEV_{name}{{{labels}{part}}} {values[which]}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def metered(monkeypatch):
    """Read two pages some seconds apart, and return the energy between them."""

    def read(first: str, second: str, seconds: float = 10.0) -> Energy:
        times = iter((100.0, 100.0 + seconds))
        monkeypatch.setattr(energy.time, "monotonic", lambda: next(times))
        monkeypatch.setattr(energy, "fetch", lambda url: second)
        return PowerMeter("http://a:9400/metrics", first).read()

    return read


def test_energy_of_all_gpus(metered):
    pages = dcgm((300, 1e6), (400, 2e6)), dcgm((310, 4e6), (420, 6e6))
    assert all(map(is_power_page, pages))
    assert metered(*pages) == Energy(7000.0, 10.0)


def test_power_where_there_is_no_counter(metered):
    assert metered(dcgm((300, None), (400, None)), dcgm((320, None), (440, None))) == Energy(7300.0, 10.0)


def test_counters_that_fell_and_gpus_that_went(metered):
    with pytest.raises(RestartedError, match="went down"):
        metered(dcgm((300, 5e6)), dcgm((300, 1e6)))
    with pytest.raises(RestartedError, match="came or went"):
        metered(dcgm((300, 5e6), (300, 5e6)), dcgm((300, 6e6)))


def test_a_page_without_power_is_refused(metered):
    with pytest.raises(StagemeterError, match="has neither"):
        metered("DCGM_FI_DEV_SM_CLOCK 1\n", "")
    assert not is_power_page("# TYPE vllm:x counter\nvllm:x 1\n")
