"""What accelerators can do at most, by their datasheets.

Three rules, since vendors print whatever is largest:

- rates are dense. A headline number with 2:4 sparsity is twice what dense work can reach; it is kept apart, in
  `Device.sparse_tflops`, so that a test can tell the two from one another;
- rates accumulate in float32, as matrix products of torch do. GeForce cards are twice as fast when they accumulate in
  float16, which their headline numbers assume;
- ``float32`` is float32 all the way, not TF32: that is what torch does unless asked otherwise.

A data type that a device has no fast path for, or that its vendor prints no number for, is absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: Vendors write the size of a device's memory in GB and mean GiB: an A100 of "80GB" reports 81,920 MiB.
_BYTES_PER_GB = 2**30


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator, as torch sees one: a GPU, a die of an MI250X, a TPU chip.

    Attributes
    ----------
    name : str
        Name in reports, such as ``A100-SXM-80GB``.
    vendor : str
        Who makes it.
    peak_tflops : mapping
        Dense TFLOP/s by data type, accumulated in float32; see the module.
    bandwidth_gbps : float
        Memory bandwidth in GB/s, 10^9 bytes each.
    memory_gb : int
        Memory in GB as the vendor counts them, see `memory_bytes`.
    source : str
        The document that the numbers are from, and what was done to them.
    reported_names : tuple of str
        What drivers call the device, such as ``NVIDIA A100-SXM4-80GB``.
    aliases : tuple of str
        What people call it, where that cannot be another device.
    sparse_tflops : mapping
        TFLOP/s with 2:4 sparsity by data type, where the source prints them. Nothing is computed from these.
    """

    name: str
    vendor: str
    peak_tflops: Mapping[str, float]
    bandwidth_gbps: float
    memory_gb: int
    source: str
    reported_names: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    sparse_tflops: Mapping[str, float] = field(default_factory=dict)

    @property
    def memory_bytes(self) -> int:
        """Size of the memory in bytes; a little more than a driver leaves to programs."""
        return self.memory_gb * _BYTES_PER_GB

    @property
    def names(self) -> tuple[str, ...]:
        """Everything the device is called, its name in reports first."""
        return (self.name, *self.aliases, *self.reported_names)


_HALVED = "printed with 2:4 sparsity, halved here"
_PRINTED = "dense and sparse rates are both printed"

_VOLTA = (
    Device(
        name="V100-SXM2-16GB",
        vendor="NVIDIA",
        peak_tflops={"float16": 125, "float32": 15.7},
        bandwidth_gbps=900,
        memory_gb=16,
        source="NVIDIA V100 datasheet",
        reported_names=("Tesla V100-SXM2-16GB",),
        aliases=("V100-SXM-16GB",),
    ),
    Device(
        name="V100-SXM2-32GB",
        vendor="NVIDIA",
        peak_tflops={"float16": 125, "float32": 15.7},
        bandwidth_gbps=900,
        memory_gb=32,
        source="NVIDIA V100 datasheet",
        reported_names=("Tesla V100-SXM2-32GB",),
        aliases=("V100-SXM-32GB",),
    ),
    Device(
        name="V100-PCIe-16GB",
        vendor="NVIDIA",
        peak_tflops={"float16": 112, "float32": 14},
        bandwidth_gbps=900,
        memory_gb=16,
        source="NVIDIA V100 datasheet",
        reported_names=("Tesla V100-PCIE-16GB",),
    ),
    Device(
        name="V100-PCIe-32GB",
        vendor="NVIDIA",
        peak_tflops={"float16": 112, "float32": 14},
        bandwidth_gbps=900,
        memory_gb=32,
        source="NVIDIA V100 datasheet",
        reported_names=("Tesla V100-PCIE-32GB",),
    ),
)

_TURING = (
    Device(
        name="T4",
        vendor="NVIDIA",
        peak_tflops={"float16": 65, "float32": 8.1},
        bandwidth_gbps=320,
        memory_gb=16,
        source="NVIDIA T4 datasheet; bandwidth from the product brief, 320 GB/s, where the datasheet rounds to 300",
        reported_names=("Tesla T4",),
    ),
)

_A100 = {"bfloat16": 312, "float16": 312, "tf32": 156, "float32": 19.5}
_A100_SPARSE = {"bfloat16": 624, "float16": 624, "tf32": 312}
_A100_SOURCE = f"NVIDIA A100 datasheet; {_PRINTED}"

_AMPERE = (
    Device(
        name="A100-SXM-40GB",
        vendor="NVIDIA",
        peak_tflops=_A100,
        sparse_tflops=_A100_SPARSE,
        bandwidth_gbps=1555,
        memory_gb=40,
        source=_A100_SOURCE,
        reported_names=("NVIDIA A100-SXM4-40GB",),
        # The PCIe card has the same rates.
        aliases=("A100-40GB",),
    ),
    Device(
        name="A100-SXM-80GB",
        vendor="NVIDIA",
        peak_tflops=_A100,
        sparse_tflops=_A100_SPARSE,
        bandwidth_gbps=2039,
        memory_gb=80,
        source=_A100_SOURCE,
        reported_names=("NVIDIA A100-SXM4-80GB",),
        # As people write it for the module; the card differs in its bandwidth alone, 1,935 GB/s, and says PCIe.
        aliases=("A100-80GB",),
    ),
    Device(
        name="A100-PCIe-40GB",
        vendor="NVIDIA",
        peak_tflops=_A100,
        sparse_tflops=_A100_SPARSE,
        bandwidth_gbps=1555,
        memory_gb=40,
        source=_A100_SOURCE,
        reported_names=("NVIDIA A100-PCIE-40GB",),
    ),
    Device(
        name="A100-PCIe-80GB",
        vendor="NVIDIA",
        peak_tflops=_A100,
        sparse_tflops=_A100_SPARSE,
        bandwidth_gbps=1935,
        memory_gb=80,
        source=_A100_SOURCE,
        reported_names=("NVIDIA A100 80GB PCIe",),
    ),
    Device(
        name="A30",
        vendor="NVIDIA",
        peak_tflops={"bfloat16": 165, "float16": 165, "tf32": 82, "float32": 10.3},
        sparse_tflops={"bfloat16": 330, "float16": 330, "tf32": 165},
        bandwidth_gbps=933,
        memory_gb=24,
        source=f"NVIDIA A30 datasheet; {_PRINTED}",
        reported_names=("NVIDIA A30",),
    ),
    Device(
        name="A10",
        vendor="NVIDIA",
        peak_tflops={"bfloat16": 125, "float16": 125, "tf32": 62.5, "float32": 31.2},
        sparse_tflops={"bfloat16": 250, "float16": 250, "tf32": 125},
        bandwidth_gbps=600,
        memory_gb=24,
        source=f"NVIDIA A10 datasheet; {_PRINTED}",
        reported_names=("NVIDIA A10",),
    ),
    Device(
        name="RTX-3090",
        vendor="NVIDIA",
        peak_tflops={"bfloat16": 71, "float16": 71, "tf32": 35.6, "float32": 35.6},
        sparse_tflops={"bfloat16": 142, "float16": 142, "tf32": 71},
        bandwidth_gbps=936,
        memory_gb=24,
        source=f"NVIDIA Ampere GA102 whitepaper; {_PRINTED}; float16 with float32 accumulation, half of the headline",
        reported_names=("NVIDIA GeForce RTX 3090",),
        aliases=("3090",),
    ),
)

_ADA = (
    Device(
        name="L4",
        vendor="NVIDIA",
        peak_tflops={"bfloat16": 121, "float16": 121, "tf32": 60, "float8": 242.5, "float32": 30.3},
        sparse_tflops={"bfloat16": 242, "float16": 242, "tf32": 120, "float8": 485},
        bandwidth_gbps=300,
        memory_gb=24,
        source=f"NVIDIA L4 datasheet; {_HALVED}",
        reported_names=("NVIDIA L4",),
    ),
    Device(
        name="L40S",
        vendor="NVIDIA",
        peak_tflops={"bfloat16": 362, "float16": 362, "tf32": 183, "float8": 733, "float32": 91.6},
        sparse_tflops={"bfloat16": 733, "float16": 733, "tf32": 366, "float8": 1466},
        bandwidth_gbps=864,
        memory_gb=48,
        source=f"NVIDIA L40S datasheet; {_PRINTED}: 362.05 beside 733",
        reported_names=("NVIDIA L40S",),
    ),
    Device(
        name="RTX-4090",
        vendor="NVIDIA",
        peak_tflops={"bfloat16": 165.2, "float16": 165.2, "tf32": 82.6, "float8": 330.3, "float32": 82.6},
        sparse_tflops={"bfloat16": 330.4, "float16": 330.4, "tf32": 165.2, "float8": 660.6},
        bandwidth_gbps=1008,
        memory_gb=24,
        source=f"NVIDIA Ada GPU architecture whitepaper; {_PRINTED}; float16 and float8 with float32 accumulation, "
        "half of the headline",
        reported_names=("NVIDIA GeForce RTX 4090",),
        aliases=("4090",),
    ),
)

_HOPPER_SXM = {"bfloat16": 989, "float16": 989, "tf32": 494.5, "float8": 1979, "float32": 67}
_HOPPER_SXM_SPARSE = {"bfloat16": 1979, "float16": 1979, "tf32": 989, "float8": 3958}
_HOPPER_NVL = {"bfloat16": 835, "float16": 835, "tf32": 417.5, "float8": 1670.5, "float32": 60}
_HOPPER_NVL_SPARSE = {"bfloat16": 1671, "float16": 1671, "tf32": 835, "float8": 3341}

_HOPPER = (
    Device(
        name="H100-SXM",
        vendor="NVIDIA",
        peak_tflops=_HOPPER_SXM,
        sparse_tflops=_HOPPER_SXM_SPARSE,
        bandwidth_gbps=3350,
        memory_gb=80,
        source=f"NVIDIA H100 datasheet; {_HALVED}, 989.4 before rounding",
        reported_names=("NVIDIA H100 80GB HBM3",),
        aliases=("H100-SXM5", "H100-SXM-80GB", "H100-SXM5-80GB"),
    ),
    Device(
        name="H100-PCIe",
        vendor="NVIDIA",
        peak_tflops={"bfloat16": 756, "float16": 756, "tf32": 378, "float8": 1513, "float32": 51},
        sparse_tflops={"bfloat16": 1513, "float16": 1513, "tf32": 756, "float8": 3026},
        bandwidth_gbps=2000,
        memory_gb=80,
        source=f"NVIDIA H100 datasheet; {_HALVED}",
        reported_names=("NVIDIA H100 PCIe",),
        aliases=("H100-PCIe-80GB",),
    ),
    Device(
        name="H100-NVL",
        vendor="NVIDIA",
        peak_tflops=_HOPPER_NVL,
        sparse_tflops=_HOPPER_NVL_SPARSE,
        bandwidth_gbps=3938,
        memory_gb=94,
        source=f"NVIDIA H100 NVL datasheet; {_HALVED}; one GPU of the pair; bandwidth from the product brief, "
        "where the datasheet rounds to 3.9 TB/s",
        reported_names=("NVIDIA H100 NVL",),
        aliases=("H100-NVL-94GB",),
    ),
    Device(
        name="H200-SXM",
        vendor="NVIDIA",
        peak_tflops=_HOPPER_SXM,
        sparse_tflops=_HOPPER_SXM_SPARSE,
        bandwidth_gbps=4800,
        memory_gb=141,
        source=f"NVIDIA H200 datasheet; {_HALVED}, 989.4 before rounding",
        # The driver's name, and so H200 alone, is that of the SXM module; the card is called H200 NVL.
        reported_names=("NVIDIA H200",),
        aliases=("H200-SXM5", "H200-SXM-141GB"),
    ),
    Device(
        name="H200-NVL",
        vendor="NVIDIA",
        peak_tflops=_HOPPER_NVL,
        sparse_tflops=_HOPPER_NVL_SPARSE,
        bandwidth_gbps=4800,
        memory_gb=141,
        source=f"NVIDIA H200 datasheet; {_HALVED}",
        reported_names=("NVIDIA H200 NVL",),
    ),
    Device(
        name="H20",
        vendor="NVIDIA",
        peak_tflops={"bfloat16": 148, "float16": 148, "tf32": 74, "float8": 296, "float32": 44},
        bandwidth_gbps=4000,
        memory_gb=96,
        source="NVIDIA H20 specification as vendors of servers print it (NVIDIA publishes no datasheet), 96 GB model",
        reported_names=("NVIDIA H20",),
        aliases=("H20-96GB",),
    ),
)

_BLACKWELL = (
    Device(
        name="B200",
        vendor="NVIDIA",
        peak_tflops={"bfloat16": 2250, "float16": 2250, "tf32": 1100, "float8": 4500, "float32": 75},
        sparse_tflops={"bfloat16": 4500, "float16": 4500, "tf32": 2200, "float8": 9000},
        bandwidth_gbps=8000,
        memory_gb=180,
        source=f"NVIDIA Blackwell datasheet, HGX B200 per GPU; {_HALVED}; bandwidth from the DGX B200 datasheet, "
        "64 TB/s over 8 GPUs, where the former prints 7.7 TB/s",
        reported_names=("NVIDIA B200",),
        aliases=("B200-SXM", "B200-180GB"),
    ),
    Device(
        name="GB200",
        vendor="NVIDIA",
        peak_tflops={"bfloat16": 2500, "float16": 2500, "tf32": 1250, "float8": 5000, "float32": 80},
        sparse_tflops={"bfloat16": 5000, "float16": 5000, "tf32": 2500, "float8": 10000},
        bandwidth_gbps=8000,
        memory_gb=186,
        source=f"NVIDIA Blackwell datasheet, GB200 NVL72 per GPU; {_HALVED}",
        reported_names=("NVIDIA GB200",),
    ),
    Device(
        name="RTX-5090",
        vendor="NVIDIA",
        peak_tflops={"bfloat16": 209.5, "float16": 209.5, "tf32": 104.8, "float8": 419, "float32": 104.8},
        sparse_tflops={"bfloat16": 419, "float16": 419, "tf32": 209.5, "float8": 838},
        bandwidth_gbps=1792,
        memory_gb=32,
        source=f"NVIDIA RTX Blackwell GPU architecture whitepaper; {_PRINTED}; float16 and float8 with float32 "
        "accumulation, half of the headline",
        reported_names=("NVIDIA GeForce RTX 5090",),
        aliases=("5090",),
    ),
)

_CDNA3 = {"bfloat16": 1307.4, "float16": 1307.4, "tf32": 653.7, "float8": 2614.9, "float32": 163.4}
_CDNA3_SPARSE = {"bfloat16": 2614.9, "float16": 2614.9, "tf32": 1307.4, "float8": 5229.8}

_INSTINCT = (
    Device(
        name="MI250X-GCD",
        vendor="AMD",
        peak_tflops={"bfloat16": 191.5, "float16": 191.5, "float32": 47.85},
        bandwidth_gbps=1638.4,
        memory_gb=64,
        source="AMD Instinct MI250X datasheet (383.0, matrix float32 95.7, 3,276.8 GB/s, 128 GB), halved: one of the "
        "two dies, which torch sees as a device each",
        reported_names=("AMD Instinct MI250X",),
    ),
    Device(
        name="MI300X",
        vendor="AMD",
        peak_tflops=_CDNA3,
        sparse_tflops=_CDNA3_SPARSE,
        bandwidth_gbps=5300,
        memory_gb=192,
        source=f"AMD Instinct MI300X datasheet; {_PRINTED}; often rounded to 1,300",
        reported_names=("AMD Instinct MI300X", "AMD Instinct MI300X OAM", "AMD Instinct MI300X VF"),
    ),
    Device(
        name="MI325X",
        vendor="AMD",
        peak_tflops=_CDNA3,
        sparse_tflops=_CDNA3_SPARSE,
        bandwidth_gbps=6000,
        memory_gb=256,
        source=f"AMD Instinct MI325X datasheet; {_PRINTED}; often rounded to 1,300",
        reported_names=("AMD Instinct MI325X", "AMD Instinct MI325X VF"),
    ),
    Device(
        name="MI355X",
        vendor="AMD",
        peak_tflops={"bfloat16": 2516.6, "float16": 2516.6, "float8": 5033.2, "float32": 157.3},
        sparse_tflops={"bfloat16": 5033.2, "float16": 5033.2, "float8": 10066.3},
        bandwidth_gbps=8000,
        memory_gb=288,
        source="AMD Instinct MI355X datasheet; 2.5 PFLOPS printed, 2,516.6 by its 1,024 matrix cores at 2.4 GHz",
        reported_names=("AMD Instinct MI355X",),
    ),
)

_TPU = (
    Device(
        name="TPU-v4",
        vendor="Google",
        peak_tflops={"bfloat16": 275},
        bandwidth_gbps=1200,
        memory_gb=32,
        source="Google Cloud documentation, TPU v4, per chip",
        reported_names=("TPU v4",),
    ),
    Device(
        name="TPU-v5e",
        vendor="Google",
        peak_tflops={"bfloat16": 197},
        bandwidth_gbps=819,
        memory_gb=16,
        source="Google Cloud documentation, TPU v5e, per chip",
        reported_names=("TPU v5 lite",),
        aliases=("v5litepod",),
    ),
    Device(
        name="TPU-v5p",
        vendor="Google",
        peak_tflops={"bfloat16": 459},
        bandwidth_gbps=2765,
        memory_gb=95,
        source="Google Cloud documentation, TPU v5p, per chip",
    ),
    Device(
        name="TPU-v6e",
        vendor="Google",
        peak_tflops={"bfloat16": 918},
        bandwidth_gbps=1638,
        memory_gb=32,
        source="Google Cloud documentation, TPU v6e (Trillium), per chip",
        reported_names=("TPU v6 lite",),
        aliases=("Trillium",),
    ),
)

_GAUDI = (
    Device(
        name="Gaudi-2",
        vendor="Intel",
        peak_tflops={"bfloat16": 432, "float8": 865},
        bandwidth_gbps=2460,
        memory_gb=96,
        source="Intel Gaudi 2 AI accelerator white paper",
        reported_names=("GAUDI2",),
    ),
    Device(
        name="Gaudi-3",
        vendor="Intel",
        peak_tflops={"bfloat16": 1835, "float8": 1835},
        bandwidth_gbps=3670,
        memory_gb=128,
        source="Intel Gaudi 3 AI accelerator white paper, 1.75 GHz; at the 1.6 GHz of shipped parts it would be 1,678",
        reported_names=("GAUDI3",),
    ),
)

#: All devices, by vendor and age.
DEVICES: tuple[Device, ...] = (
    *_VOLTA,
    *_TURING,
    *_AMPERE,
    *_ADA,
    *_HOPPER,
    *_BLACKWELL,
    *_INSTINCT,
    *_TPU,
    *_GAUDI,
)
