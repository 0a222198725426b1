"""Peaks of devices, as their vendors publish them: rows of data, each with its source. All of them are dense.

A figure stands here only if its source was read; how, and what was left out, is told in docs/hardware.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["PRECISIONS", "ROWS", "Row", "Source"]

# What a peak depends on. `float16_accumulate` is float16 summed in float16, which PyTorch does only when it is asked
# to (`torch.backends.cuda.matmul.allow_fp16_accumulation`).
PRECISIONS = ("float64", "float32", "tfloat32", "bfloat16", "float16", "float16_accumulate", "float8")


@dataclass(frozen=True, slots=True)
class Source:
    """A document of a vendor.

    Attributes:
        document: what it calls itself.
        url: where the vendor keeps it.
        read_on: the day, as year-month-day.
        read_as: "copy", the text of the document itself, or "quoted", by other publications that name it.
    """

    document: str
    url: str
    read_as: str = "quoted"
    read_on: str = "2026-11-22"

    def __str__(self) -> str:
        return f"{self.document}, {self.url}, read {self.read_on}"


@dataclass(frozen=True, slots=True)
class Row:
    """A device.

    Attributes:
        names: the words by which drivers call it, without the vendor's name.
        tflops: 1e12 FLOP/s of matrix products without sparsity, by precision; those that are not known are not in it.
        gb_per_s: of the device's memory, 1e9 bytes/s; None where it is not known.
        source: of all its figures.
    """

    names: tuple[str, ...]
    tflops: Mapping[str, float]
    gb_per_s: float | None
    source: Source


NVIDIA = "https://www.nvidia.com/content/dam/en-zz/Solutions"
AMD = "https://www.amd.com/content/dam/amd/en/documents/instinct-tech-docs"

AMPERE_IN_DEPTH = Source(
    "NVIDIA Ampere Architecture In-Depth",
    "https://developer.nvidia.com/blog/nvidia-ampere-architecture-in-depth/",
    "copy",
)
TURING_IN_DEPTH = Source(
    "NVIDIA Turing Architecture In-Depth",
    "https://developer.nvidia.com/blog/nvidia-turing-architecture-in-depth/",
    "copy",
)
V100 = Source(
    "NVIDIA V100 data sheet",
    "https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf",
)
T4 = Source("NVIDIA T4 data sheet", f"{NVIDIA}/Data-Center/tesla-t4/t4-tensor-core-datasheet-951643.pdf")
A10 = Source("NVIDIA A10 data sheet", f"{NVIDIA}/Data-Center/a10/pdf/datasheet-new/nvidia-a10-datasheet.pdf")
A30 = Source("NVIDIA A30 data sheet", f"{NVIDIA}/data-center/products/a30-gpu/pdf/a30-datasheet.pdf")
A40 = Source(
    "NVIDIA A40 data sheet", "https://images.nvidia.com/content/Solutions/data-center/a40/nvidia-a40-datasheet.pdf"
)
A100 = Source(
    "NVIDIA A100 data sheet", f"{NVIDIA}/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
)
GA102 = Source(
    "NVIDIA Ampere GA102 GPU Architecture, v2",
    "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf",
)
A5000 = Source("NVIDIA RTX A5000 data sheet", f"{NVIDIA}/products/workstations/nvidia-rtx-a5000-datasheet.pdf")
ADA = Source(
    "NVIDIA Ada GPU Architecture, v2.02",
    "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf",
)
L4 = Source("NVIDIA L4 specifications", "https://www.nvidia.com/en-us/data-center/l4/")
L40 = Source("NVIDIA L40 data sheet, as a dealer gives it", "https://www.mullet.se/product.html?product_id=355414")
L40S = Source("NVIDIA L40S specifications", "https://www.nvidia.com/en-us/data-center/l40s/")
H100_ARCHITECTURE = Source(
    "NVIDIA H100 Tensor Core GPU Architecture, V1.04",
    "https://nvdam.widen.net/s/95bdhpsgrs/nvidia_h100_tensor_core_gpu_architecture_whitepaper_v1.03",
)
H100_PCIE = Source(
    "NVIDIA H100 data sheet, 2022", "https://nvdam.widen.net/content/vuzumiozpb/original/h100-datasheet-2287922.pdf"
)
H100 = Source("NVIDIA H100 specifications", "https://www.nvidia.com/en-us/data-center/h100/")
H200 = Source("NVIDIA H200 specifications", "https://www.nvidia.com/en-us/data-center/h200/")
GH200 = Source(
    "NVIDIA GH200 Grace Hopper Superchip data sheet",
    "https://nvdam.widen.net/content/tf2prbffgy/original/grace-hopper-superchip-datasheet-nvidia-2705455.pdf",
)
B200 = Source("NVIDIA DGX B200 data sheet", "https://resources.nvidia.com/en-us-dgx-systems/dgx-b200-datasheet")
B300 = Source("NVIDIA HGX specifications", "https://www.nvidia.com/en-us/data-center/hgx/")
GB200 = Source("NVIDIA GB200 NVL72 specifications", "https://www.nvidia.com/en-us/data-center/gb200-nvl72/")
BLACKWELL = Source(
    "NVIDIA RTX Blackwell GPU Architecture",
    "https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf",
)
BLACKWELL_PRO = Source(
    "NVIDIA RTX Blackwell PRO GPU Architecture, v1.0",
    f"{NVIDIA}/design-visualization/quadro-product-literature/NVIDIA-RTX-Blackwell-PRO-GPU-Architecture-v1.0.pdf",
)
MI300X = Source("AMD Instinct MI300X data sheet", f"{AMD}/data-sheets/amd-instinct-mi300x-data-sheet.pdf")
MI325X = Source("AMD Instinct MI325X data sheet", f"{AMD}/product-briefs/instinct-mi325x-datasheet.pdf")
MI350X = Source("AMD Instinct MI350X brochure", f"{AMD}/product-briefs/amd-instinct-mi350x-gpu-brochure.pdf")
MI355X = Source("AMD Instinct MI355X brochure", f"{AMD}/product-briefs/amd-instinct-mi355x-gpu-brochure.pdf")


def _tflops(
    *,
    float64: float | None = None,
    float32: float | None = None,
    tfloat32: float | None = None,
    sixteen_bit: float | None = None,
    bfloat16: float | None = None,
    float16: float | None = None,
    float16_accumulate: float | None = None,
    float8: float | None = None,
) -> dict[str, float]:
    """The figures that are given, by precision; `sixteen_bit` is bfloat16 and float16 alike."""
    figures = {
        "float64": float64,
        "float32": float32,
        "tfloat32": tfloat32,
        "bfloat16": bfloat16 or sixteen_bit,
        "float16": float16 or sixteen_bit,
        "float16_accumulate": float16_accumulate,
        "float8": float8,
    }
    return {precision: figure for precision, figure in figures.items() if figure is not None}


# Cards for data centres sum float16 in float32 as fast as in float16, so both are one figure.
def _volta(float64: float, float32: float, float16: float) -> dict[str, float]:
    """Of Volta, which has no TF32: float32 stays what it is, whatever precision is asked for."""
    return _tflops(float64=float64, float32=float32, tfloat32=float32, float16=float16, float16_accumulate=float16)


_A100 = _tflops(float64=19.5, float32=19.5, tfloat32=156, sixteen_bit=312, float16_accumulate=312)
# Halves of what is printed with sparsity: 835, 1671 and 3341.
_HOPPER_NVL = _tflops(float64=60, float32=60, tfloat32=835 / 2, sixteen_bit=1671 / 2, float8=3341 / 2)

ROWS: tuple[Row, ...] = (
    # Volta and Turing. Neither has matrix units for bfloat16.
    Row(("V100 SXM2 16GB", "V100 SXM2 32GB"), _volta(7.8, 15.7, 125), 900, AMPERE_IN_DEPTH),
    Row(("V100 PCIE 16GB", "V100 PCIE 32GB"), _volta(7, 14, 112), 900, V100),
    Row(("V100S PCIE 32GB",), _volta(8.2, 16.4, 130), None, V100),
    # Sources have 300 and 320 GB/s.
    Row(("T4",), _tflops(float32=8.1, tfloat32=8.1, float16=65), None, T4),
    Row(
        ("Quadro RTX 6000",),
        _tflops(float32=16.3, tfloat32=16.3, float16=130.5, float16_accumulate=130.5),
        672,
        TURING_IN_DEPTH,
    ),
    # Ampere
    Row(("A10",), _tflops(float32=31.2, tfloat32=62.5, sixteen_bit=125), 600, A10),
    Row(("A30",), _tflops(float64=10.3, float32=10.3, tfloat32=82, sixteen_bit=165), 933, A30),
    Row(("A40",), _tflops(float32=37.4, tfloat32=74.8, sixteen_bit=149.7), 696, A40),
    Row(("A100 SXM4 40GB",), _A100, 1555, AMPERE_IN_DEPTH),
    Row(("A100 SXM4 80GB",), _A100, 2039, A100),
    Row(("A100 PCIE 40GB",), _A100, 1555, A100),
    Row(("A100 80GB PCIe",), _A100, 1935, A100),
    Row(("RTX A5000",), _tflops(float32=27.8), 768, A5000),
    Row(("RTX A6000",), _tflops(float32=38.7, sixteen_bit=154.8), 768, GA102),
    Row(("RTX 3090",), _tflops(float32=35.6, tfloat32=35.6, sixteen_bit=71, float16_accumulate=142), 936, GA102),
    # Ada. With sparsity the L4 prints 120, 242 and 485.
    Row(("L4",), _tflops(float32=30.3, tfloat32=120 / 2, sixteen_bit=242 / 2, float8=485 / 2), 300, L4),
    Row(("L40",), _tflops(float32=90.5), 864, L40),
    Row(("L40S",), _tflops(float32=91.6, tfloat32=183, sixteen_bit=362.05, float8=733), 864, L40S),
    Row(
        ("RTX 4090",),
        _tflops(float32=82.6, tfloat32=82.6, sixteen_bit=165.2, float16_accumulate=330.3, float8=330.3),
        1008,
        ADA,
    ),
    # Hopper
    Row(
        ("H100 80GB HBM3",),
        _tflops(float64=66.9, float32=66.9, tfloat32=494.7, sixteen_bit=989.4, float8=1978.9),
        3350,
        H100_ARCHITECTURE,
    ),
    # Printed with sparsity: 756, 1513 and 3026.
    Row(
        ("H100 PCIe",),
        _tflops(float64=51, float32=51, tfloat32=756 / 2, sixteen_bit=1513 / 2, float8=3026 / 2),
        2000,
        H100_PCIE,
    ),
    Row(("H100 NVL",), _HOPPER_NVL, 3900, H100),
    # Printed with sparsity: 989, 1979 and 3958.
    Row(
        ("H200",),
        _tflops(float64=67, float32=67, tfloat32=989 / 2, sixteen_bit=1979 / 2, float8=3958 / 2),
        4800,
        H200,
    ),
    Row(("H200 NVL",), _HOPPER_NVL, 4800, H200),
    Row(("GH200 480GB",), _tflops(tfloat32=494, sixteen_bit=990, float8=1979), None, GH200),
    # Blackwell. Eight B200 or B300 print 36 and 72 PFLOPS with sparsity; two GPUs of a GB200 print 5, 10 and 20.
    Row(("B200",), _tflops(sixteen_bit=36000 / 16, float8=72000 / 16), 8000, B200),
    Row(("B300 SXM6 AC",), _tflops(bfloat16=36000 / 16, float8=72000 / 16), 8000, B300),
    Row(
        ("GB200",),
        _tflops(float64=80 / 2, float32=160 / 2, tfloat32=5000 / 4, sixteen_bit=10000 / 4, float8=20000 / 4),
        16000 / 2,
        GB200,
    ),
    Row(
        ("RTX 5090",),
        _tflops(float32=104.8, sixteen_bit=209.5, float16_accumulate=419, float8=419),
        1792,
        BLACKWELL,
    ),
    Row(("RTX PRO 6000 Blackwell Workstation Edition",), _tflops(bfloat16=503.8), 1792, BLACKWELL_PRO),
    # CDNA 3 and 4; float32 and float64 are those of the matrix cores.
    Row(("MI300X",), _tflops(float64=163.4, float32=163.4, sixteen_bit=1307.4, float8=2614.9), 5300, MI300X),
    Row(("MI325X",), _tflops(float64=163.4, float32=163.4, sixteen_bit=1307.4, float8=2614.9), 6000, MI325X),
    Row(("MI350X",), _tflops(float64=72.1, float32=144.2, sixteen_bit=2309.6, float8=4614), 8000, MI350X),
    Row(("MI355X",), _tflops(float64=78.6, float32=157.3, sixteen_bit=2516.6, float8=5033.2), 8000, MI355X),
)
