"""Peak rates of devices, without sparsity, each row with its sources.

A figure is in the table if the vendor's own text has it, or if two other publications agree on it. All of them were
read. docs/hardware.md lists what was left out, and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["PRECISIONS", "ROWS", "Row", "Source"]

# `float16_accumulate` is float16 summed in float16, which PyTorch does only on request
# (`torch.backends.cuda.matmul.allow_fp16_accumulation`).
PRECISIONS = ("float64", "float32", "tfloat32", "bfloat16", "float16", "float16_accumulate", "float8")


@dataclass(frozen=True, slots=True)
class Source:
    """Text that was read and that has a figure.

    Attributes:
        document: title.
        url: address where it was read.
        vendor: whether it is the vendor's own text; otherwise it quotes the vendor.
        read_on: day of reading, as year-month-day.
    """

    document: str
    url: str
    vendor: bool = False
    read_on: str = "2026-11-23"

    def __str__(self) -> str:
        return f"{self.document}, {self.url}, read {self.read_on}"


@dataclass(frozen=True, slots=True)
class Row:
    """Peak rates of one device.

    Attributes:
        names: words of the driver's device names, without the vendor's name.
        tflops: 1e12 FLOP/s of matrix products without sparsity, by precision; unknown ones are absent.
        gb_per_s: 1e9 bytes/s of the device's memory; None if unknown.
        sources: texts with at least one of the figures; each figure is in one of the vendor's or in two others.
    """

    names: tuple[str, ...]
    tflops: Mapping[str, float]
    gb_per_s: float | None
    sources: tuple[Source, ...]


def _file(document: str, repository: str, commit: str, path: str, *, vendor: bool = False) -> Source:
    """Return the source for a file on GitHub at a commit."""
    return Source(document, f"https://github.com/{repository}/blob/{commit}/{path}", vendor)


# NVIDIA's own texts.
AMPERE_IN_DEPTH = Source(
    "NVIDIA Ampere Architecture In-Depth",
    "https://developer.nvidia.com/blog/nvidia-ampere-architecture-in-depth/",
    vendor=True,
)
TURING_IN_DEPTH = Source(
    "NVIDIA Turing Architecture In-Depth",
    "https://developer.nvidia.com/blog/nvidia-turing-architecture-in-depth/",
    vendor=True,
)
TENSORRT_LLM = _file(
    "TensorRT-LLM",
    "NVIDIA/TensorRT-LLM",
    "16d2467ea8e3b45d7d9555010c2ad018d006d5c1",
    "tensorrt_llm/auto_parallel/cluster_info.py",
    vendor=True,
)
NEMO_RL = _file(
    "NeMo RL",
    "NVIDIA-NeMo/RL",
    "a965f842571d2d2c46e9805fed53045ef9f0844e",
    "nemo_rl/utils/flops_tracker.py",
    vendor=True,
)

T4_BRIEF = Source(
    "NVIDIA T4 product brief",
    "https://manualmachine.com/pny/tcst4mpb/8129101-user-manual",
    vendor=True,
    read_on="2026-11-30",
)

# AMD's, as converted to Markdown by others.
_CDNA = "kuhar/amdgpu-isa-manuals", "0266938ebfdb5085d09f9b836389dfd41d1799c6"
CDNA2 = _file("AMD CDNA 2 white paper", *_CDNA, "cdna2/whitepaper.md", vendor=True)
CDNA3 = _file("AMD CDNA 3 white paper", *_CDNA, "cdna3/whitepaper.md", vendor=True)
CDNA4 = _file("AMD CDNA 4 white paper", *_CDNA, "cdna4/whitepaper.md", vendor=True)

# Tables in programs that compare a rate with a peak.
COMPOSER = _file(
    "Composer", "mosaicml/composer", "003ec03f7c9a69c0bf0dabbe949a6f55daa7a447", "composer/callbacks/speed_monitor.py"
)
LIGHTNING = _file(
    "Lightning",
    "Lightning-AI/pytorch-lightning",
    "1526f8408e1f73baf1e3d10bb7eb2d08fc5de8e4",
    "src/lightning/fabric/utilities/throughput.py",
)
PYTORCH = _file(
    "PyTorch Inductor",
    "pytorch/pytorch",
    "00604d0f7e9adbfb6a6ef06f375007945118044d",
    "torch/_inductor/analysis/device_info.py",
)
TORCHTITAN = _file(
    "torchtitan", "pytorch/torchtitan", "02581674d9dbd6bbeb04817a8a4d95bdb4a18a5b", "torchtitan/tools/utils.py"
)
VERL = _file("verl", "volcengine/verl", "02cf355f17969b4a8e76ff981dda8b5a8ae440b9", "verl/utils/flops_counter.py")
NANOCHAT = _file("nanochat", "karpathy/nanochat", "03880dbc4b1efcfc2fb57695391688b25151e678", "harness/runtime.py")
MARIN = _file(
    "Marin",
    "marin-community/marin",
    "0bb513221f10645cb08420068d6e6da2af249914",
    "lib/fray/src/fray/cluster/device_flops.py",
)
LLM_C = _file("llm.c", "karpathy/llm.c", "0e69e3ae466694915e9f7e5742b3c55edacc20fd", "llmc/mfu.h")
EXO = _file("exo", "exo-explore/exo", "0060cd39bd99a09954a792c0448d6f84477a5f99", "exo/topology/device_capabilities.py")

# Notes, pages and dealers' copies of data sheets.
ML_ENGINEERING = _file(
    "Machine Learning Engineering",
    "stas00/ml-engineering",
    "007447327a0cb851796ebf896f975566f8d97f38",
    "compute/accelerator/README.md",
)
AUTORESEARCH = _file(
    "autoresearch",
    "firefighter-eric/autoresearch",
    "e8d383379071129ca60a4dba06e40a82a2a22c24",
    "docs/experiment-results.md",
)
GPU_SPECS = _file("gpu-specs", "winston-zhang-orz/gpu-specs", "HEAD", "specs.md")
GPU_RANKING = _file("GPU ranking", "nicejunjie/nicejunjie.github.io", "HEAD", "_posts/2024-06-08-gpu-ranking.md")
LOCKWOOD_H100 = Source("Lockwood on the H100", "https://glennklockwood.com/garden/processors/h100")
LOCKWOOD_B200 = Source("Lockwood on the B200", "https://glennklockwood.com/garden/processors/B200")
LOCKWOOD_B300 = Source("Lockwood on the B300", "https://glennklockwood.com/garden/processors/B300")
TOMS = Source(
    "Tom's Hardware on Blackwell Ultra",
    "https://www.tomshardware.com/pc-components/gpus/nvidia-shares-blackwell-ultras-secrets-nvfp4-boost-detailed-and-pcie-6-0-support",
)
IO_TECH = Source(
    "io-tech on the V100 PCIe",
    "https://www.io-tech.fi/uutinen/nvidia-esitteli-tesla-v100-pci-express-kiihdyttimen-tieteelliseen-laskentaan/",
)
_SYSRQMTS = "https://sysrqmts.com"
SYSRQMTS_V100 = Source(
    "sysrqmts", f"{_SYSRQMTS}/it/gpus/compare/nvidia-tesla-t10-processor-vs-nvidia-tesla-v100-pcie-16-gb"
)
SYSRQMTS_A4000 = Source("sysrqmts", f"{_SYSRQMTS}/tr/gpus/compare/nvidia-geforce-rtx-3080-12-gb-vs-nvidia-rtx-a4000")
SYSRQMTS_A6000 = Source("sysrqmts", f"{_SYSRQMTS}/ru/gpus/compare/nvidia-geforce-rtx-3060-vs-nvidia-rtx-a6000")
_ECER = "https://www.ecer.com/corp/details-uuuedqa"
ECER_A40 = Source(
    "A40, a dealer's page",
    f"{_ECER}-p1bsay9-multi-display-setups-supported-by-48gb-gddr6-ecc-memory-nvidia-a40-gpu-and-vga-outputs.html",
)
ECER_A4000 = Source(
    "RTX A4000, a dealer's page",
    f"{_ECER}-p1bsb03-pci-express-3-0-x16-nvidia-rtx-a4000-16g-graphics-card-for-professional-video-editing.html",
)
_HMC = "https://hmc-tech.com/gpu"
HMC_A800 = Source("hmc-tech", f"{_HMC}/nvidia-a800-vs-nvidia-t40")
HMC_L40 = Source("hmc-tech", f"{_HMC}/nvidia-l40-vs-nvidia-a40")
HMC_4070 = Source("hmc-tech", f"{_HMC}/amd-radeon-rx-9070-xt-vs-nvidia-geforce-rtx-4070")
HMC_5080 = Source("hmc-tech", f"{_HMC}/nvidia-geforce-rtx-5080-vs-amd-radeon-rx-540")
HMC_5090 = Source("hmc-tech", f"{_HMC}/nvidia-6x-geforce-rtx-5090-vs-nvidia-geforce-rtx-3080-12gb")
CALWOO = Source(
    "calwoo's notes", "https://calwoo.github.io/notes/concepts/deep-learning-engineering/nvidia-gpu-hardware/index.html"
)
LLMPERF = Source("LLMPerf on the RTX A6000", "https://llmperf.net/categories/gpu/Nvidia-A6000-GPUs")
ALLDBIN = Source(
    "alldbin",
    "https://cpu-gpu.alldbin.com/graphics-card-comparison/GeForce-RTX-3070-and-GeForce-RTX-2060-12-GB-comparison.html",
)
WAREDB = Source("WareDB", "https://waredb.com/processor/nvidia-geforce-rtx-4090")
HOLYNERDVANA = Source(
    "HolyNerdvana", "https://www.holynerdvana.com/2022/10/nvidia-geforce-rtx-4080-specifications.html"
)
CPUTRONIC = Source("cputronic", "https://cputronic.com/gpu/compare/nvidia-geforce-rtx-4080-vs-amd-radeon-rx-9070-xt")
BIGGO = Source("BigGo on the RTX 5080", "https://biggo.com/news/202501291423_nvidia-rtx-5080-review")
ITCCTV = Source(
    "itcctv", "https://itcctv.vn/page/nvidia-geforce-rtx-5080-vs-rtx-4080-super-moi-hon-nhung-co-tot-hon-khong"
)
SPHERON = Source("Spheron on the RTX 5090", "https://www.spheron.network/blog/nvidia-rtx-5090-specs/")
LINUX_FORMAT = Source(
    "Linux Format", "https://pocketmags.com/linux-format-magazine/may-2025/articles/nvidia-geforce-rtx-5090"
)


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
    """Return the given figures by precision.

    `sixteen_bit` stands for both bfloat16 and float16.
    """
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


# Data centre cards sum float16 in float32 as fast as in float16, so a single figure in NVIDIA's own text is valid for
# both. Volta and Turing have no TF32: float32 stays float32, whatever precision is requested.
_A100 = _tflops(float64=19.5, float32=19.5, tfloat32=156, sixteen_bit=312, float16_accumulate=312)
_MI300X = _tflops(float64=163.4, float32=163.4, sixteen_bit=1307.4, float8=2614.9)

ROWS: tuple[Row, ...] = (
    # Volta and Turing. Neither has matrix units for bfloat16.
    Row(
        ("V100 SXM2 16GB", "V100 SXM2 32GB"),
        _tflops(float64=7.8, float32=15.7, tfloat32=15.7, float16=125, float16_accumulate=125),
        900,
        (AMPERE_IN_DEPTH,),
    ),
    Row(
        ("V100 PCIE 16GB", "V100 PCIE 32GB"),
        _tflops(float64=7, float32=14, tfloat32=14, float16=112),
        900,
        (IO_TECH, COMPOSER, SYSRQMTS_V100),
    ),
    Row(
        ("V100S PCIE 32GB",),
        _tflops(float64=8.2, float32=16.4, tfloat32=16.4, float16=130),
        None,
        (COMPOSER, GPU_SPECS),
    ),
    Row(("T4",), _tflops(float32=8.1, tfloat32=8.1, float16=65), 320, (T4_BRIEF, COMPOSER, GPU_SPECS)),
    Row(
        ("Quadro RTX 6000",),
        _tflops(float32=16.3, tfloat32=16.3, float16=130.5, float16_accumulate=130.5),
        672,
        (TURING_IN_DEPTH,),
    ),
    # Ampere
    Row(
        ("A10",),
        _tflops(float32=31.2, tfloat32=62.5, sixteen_bit=125),
        600,
        (TENSORRT_LLM, COMPOSER, GPU_SPECS),
    ),
    Row(("A30",), _tflops(tfloat32=82, sixteen_bit=165), 933, (TENSORRT_LLM,)),
    # NVIDIA's program rounds: 75 and 150.
    Row(("A40",), _tflops(float32=37.4, tfloat32=74.8, sixteen_bit=149.7), 696, (TENSORRT_LLM, ECER_A40, MARIN)),
    Row(("A100 SXM4 40GB",), _A100, 1555, (AMPERE_IN_DEPTH, TENSORRT_LLM)),
    Row(("A100 SXM4 80GB",), _A100, 2039, (AMPERE_IN_DEPTH, TENSORRT_LLM)),
    Row(("A100 PCIE 40GB",), _A100, 1555, (AMPERE_IN_DEPTH, TENSORRT_LLM)),
    Row(("A100 80GB PCIe",), _A100, 1935, (AMPERE_IN_DEPTH, TENSORRT_LLM, NEMO_RL)),
    Row(
        ("A800 SXM4 80GB", "A800 80GB PCIe"),
        _tflops(float32=19.5, sixteen_bit=312),
        None,
        (EXO, VERL, HMC_A800),
    ),
    Row(("RTX A4000",), _tflops(float32=19.2), 448, (ECER_A4000, SYSRQMTS_A4000, EXO)),
    Row(("RTX A5000",), _tflops(float32=27.8), None, (EXO, CALWOO)),
    # Marin has 309.7 with sparsity: half of it is dense.
    Row(
        ("RTX A6000",),
        _tflops(float32=38.7, sixteen_bit=309.7 / 2),
        768,
        (LLMPERF, EXO, LIGHTNING, MARIN, SYSRQMTS_A6000),
    ),
    Row(("RTX 3060",), _tflops(float32=12.7), None, (GPU_RANKING, SYSRQMTS_A6000)),
    Row(("RTX 3060 Ti",), _tflops(float32=16.2, sixteen_bit=32.4), None, (EXO, LLM_C, GPU_RANKING)),
    Row(
        ("RTX 3070",),
        _tflops(float32=20.3, tfloat32=20.3, sixteen_bit=40.6),
        448,
        (EXO, LLM_C, LIGHTNING, GPU_RANKING, ALLDBIN),
    ),
    Row(("RTX 3070 Ti",), _tflops(float32=21.7, sixteen_bit=43.5), None, (EXO, LLM_C, GPU_RANKING)),
    Row(("RTX 3080 Ti",), _tflops(float32=34.1, tfloat32=34.1, sixteen_bit=68.2), None, (EXO, LLM_C, LIGHTNING)),
    Row(
        ("RTX 3090",),
        _tflops(float32=35.6, tfloat32=35.6, sixteen_bit=71),
        936,
        (EXO, LLM_C, LIGHTNING, NANOCHAT, GPU_RANKING),
    ),
    Row(("RTX 3090 Ti",), _tflops(float32=40, tfloat32=40, sixteen_bit=80), None, (EXO, LLM_C, LIGHTNING)),
    # Ada
    Row(
        ("L4",),
        _tflops(float32=30.3, tfloat32=60, sixteen_bit=121, float8=242),
        300,
        (TENSORRT_LLM, LIGHTNING, GPU_SPECS),
    ),
    Row(("L40",), _tflops(float32=90.5), 864, (TENSORRT_LLM, LIGHTNING, HMC_L40)),
    Row(
        ("L40S",),
        _tflops(float32=91.6, tfloat32=183, sixteen_bit=362.05, float8=733),
        864,
        (TENSORRT_LLM, VERL, ML_ENGINEERING, GPU_SPECS),
    ),
    Row(("RTX 4060 Ti",), _tflops(sixteen_bit=44.1), None, (EXO, LLM_C)),
    Row(("RTX 4070",), _tflops(float32=29.15, sixteen_bit=58.3), None, (EXO, LLM_C, GPU_RANKING, HMC_4070)),
    # The published figure of float16 summed in float16 is with sparsity: half of it is dense.
    Row(
        ("RTX 4080",),
        _tflops(float32=48.7, tfloat32=48.7, sixteen_bit=97.5, float16_accumulate=390 / 2),
        716.8,
        (AUTORESEARCH, LLM_C, EXO, LIGHTNING, HOLYNERDVANA, CPUTRONIC),
    ),
    Row(
        ("RTX 4080 SUPER",),
        _tflops(float32=52.2, sixteen_bit=104.5),
        736,
        (EXO, LLM_C, GPU_RANKING, ITCCTV, BIGGO),
    ),
    Row(
        ("RTX 4090",),
        _tflops(float32=82.6, tfloat32=82.6, sixteen_bit=165.2, float8=330.3),
        1008,
        (WAREDB, LLM_C, LIGHTNING, NANOCHAT),
    ),
    # Hopper
    Row(("H20",), _tflops(tfloat32=74, sixteen_bit=147, float8=293), 4000, (TENSORRT_LLM,)),
    Row(
        ("H100 80GB HBM3",),
        _tflops(float64=66.9, float32=66.9, tfloat32=494.7, sixteen_bit=989.4, float8=1978.9),
        3350,
        (TENSORRT_LLM, NEMO_RL, LOCKWOOD_H100, LIGHTNING),
    ),
    Row(
        ("H100 PCIe",),
        _tflops(float64=51, float32=51, tfloat32=378, sixteen_bit=756, float8=1513),
        2000,
        (TENSORRT_LLM, COMPOSER, GPU_SPECS),
    ),
    # TensorRT-LLM has both kinds of H200 with sparsity: half of it is dense.
    Row(
        ("H200",),
        _tflops(float64=67, float32=67, tfloat32=989 / 2, sixteen_bit=1979 / 2, float8=3958 / 2),
        4800,
        (NEMO_RL, TENSORRT_LLM, COMPOSER, LOCKWOOD_H100),
    ),
    Row(("H200 NVL",), _tflops(float32=60, sixteen_bit=1671 / 2, float8=3341 / 2), 4800, (TENSORRT_LLM,)),
    # Blackwell
    Row(("B200",), _tflops(sixteen_bit=2250, float8=4500), None, (NEMO_RL, ML_ENGINEERING, LOCKWOOD_B200)),
    Row(("B300 SXM6 AC",), _tflops(bfloat16=2250), 8000, (NEMO_RL, LOCKWOOD_B300, TOMS)),
    Row(
        ("GB200",),
        _tflops(float32=80, tfloat32=2500 / 2, float8=5000),
        8000,
        (NEMO_RL, ML_ENGINEERING, LOCKWOOD_B200, NANOCHAT),
    ),
    Row(("RTX 5080",), _tflops(float32=56.3), None, (HMC_5080, ITCCTV)),
    # The published figure of float16 summed in float16 is with sparsity: half of it is dense.
    Row(
        ("RTX 5090",),
        _tflops(float32=104.8, sixteen_bit=209.5, float16_accumulate=838 / 2),
        1792,
        (NANOCHAT, AUTORESEARCH, SPHERON, LINUX_FORMAT, HMC_5090),
    ),
    # CDNA 2 to 4; float32 and float64 are those of the matrix cores. PyTorch sees each half of an MI250X as a device.
    Row(("MI210",), _tflops(float64=45.3, float32=45.3, sixteen_bit=181), 1638.4, (CDNA2,)),
    Row(
        ("MI250X",),
        _tflops(float64=95.7 / 2, float32=95.7 / 2, sixteen_bit=383 / 2),
        3276.8 / 2,
        (CDNA2, TORCHTITAN),
    ),
    Row(("MI300A",), _tflops(float64=122.6, float32=122.6, sixteen_bit=980.6, float8=1961.2), 5300, (CDNA3,)),
    Row(("MI300X",), _MI300X, 5300, (CDNA3,)),
    Row(("MI325X",), _MI300X, 6000, (CDNA3,)),
    # The white paper rounds PyTorch's figures, to 2.3 and 4.6 PFLOPS.
    Row(
        ("MI350X",),
        _tflops(float64=72.1, float32=144.2, sixteen_bit=2309.6, float8=4614),
        8000,
        (CDNA4, PYTORCH),
    ),
    # The white paper rounds to 2.5 and 5.0 PFLOPS, and has the factors: 256 units, 2.4 GHz, 4096 and 8192 FLOPs per
    # clock.
    Row(
        ("MI355X",),
        _tflops(float64=78.6, float32=157.3, sixteen_bit=2516.6, float8=5033.2),
        8000,
        (CDNA4,),
    ),
)
