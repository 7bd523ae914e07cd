"""What decides about the CUDA build and reports on it: the build backend, the kernel list, `fusecell info`."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from fusecell import _dispatch, info

ROOT = Path(__file__).parent.parent


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make tools/ importable, with no nvcc, no driver and no wish in sight."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("FUSECELL_CUDA", raising=False)
    monkeypatch.delenv("CUDACXX", raising=False)


def write_nvcc(folder: Path, version: str, *, runtime: bool) -> None:
    """An nvcc that says what the real one says, and its toolkit's folders."""
    (folder / "lib64").mkdir()
    if runtime:
        (folder / "lib64/libcudart_static.a").touch()
    nvcc = folder / "nvcc"
    nvcc.write_text(f"""#!/bin/sh
case $1 in
  --version) echo "Cuda compilation tools, release {version}, V{version}.99" ;;
  --dryrun) echo '#$ _HERE_={folder}/bin' >&2; echo '#$ TOP={folder}' >&2 ;;
esac
""")
    nvcc.chmod(0o755)


# ---------------------------------------------------------------------------------------- the build backend
@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize(("wish", "expected"), [("on", "nvidia-cuda-nvcc==13.0"), ("off", ""), (None, "")])
def test_a_compiler_is_fetched_only_if_asked_for(
    wish: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("scikit_build_core")
    import build_backend

    if wish:
        monkeypatch.setenv("FUSECELL_CUDA", wish)
    required = [name for name in build_backend.get_requires_for_build_wheel() if name.startswith("nvidia")]
    assert bool(required) == bool(expected)
    assert not expected or required[0].startswith(expected)
    assert required == [name for name in build_backend.get_requires_for_build_editable() if name.startswith("nvidia")]


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize(
    ("version", "runtime", "expected"), [("12.4", False, 1), ("12.4", True, 0), ("13.0", False, 0)]
)
def test_a_runtime_is_fetched_for_a_cuda_12_without_one(
    version: str, runtime: bool, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("scikit_build_core")
    import build_backend

    write_nvcc(tmp_path, version, runtime=runtime)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("FUSECELL_CUDA", "on")
    required = [name for name in build_backend.get_requires_for_build_wheel() if name.startswith("nvidia")]
    assert len(required) == expected
    assert all(name == "nvidia-cuda-runtime-cu12==12.9.79" for name in required)


# ----------------------------------------------------------------------------------------- the list of kernels
@pytest.mark.usefixtures("tools")
def test_kernels_are_listed_and_few() -> None:
    import kernel_report

    folder = ROOT / "csrc/cuda"
    listed = kernel_report.listed_kernels((folder / "kernels.def").read_text())
    assert len(set(listed)) == len(listed) <= kernel_report.MOST_KERNELS
    # Each header's kernels are in the list under its name.
    for header in folder.glob("*.cuh"):
        declared = re.findall(r"__global__ void (?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(", header.read_text())
        assert {re.sub(r"<.*", "", name) for place, name in listed if place == header.name} == set(declared)


DUMP = """
arch = sm_80
 Function void fusecell::cuda::step<float, fusecell::SigmoidTanh<float>, (fusecell::Mode)2, 64u>(float*, int (*)(int)):
  REG:40 STACK:0 SHARED:4096 LOCAL:0 CONSTANT[0]:376
arch = sm_90
 Function fusecell::cuda::fill(float*):
  REG:8 STACK:16 SHARED:0 LOCAL:0 CONSTANT[0]:376
"""


@pytest.mark.usefixtures("tools")
def test_report_reads_what_cuobjdump_prints() -> None:
    import kernel_report

    step = "step<float,SigmoidTanh<float>,2,64>"
    kernels = kernel_report.parse(DUMP)
    assert kernels == {
        "sm_80": {step: "40 registers, 4096 shared, 0 stack, 6 blocks at once"},
        "sm_90": {"fill": "8 registers, 0 shared, 16 stack, 8 blocks at once"},
    }
    none = {"sm_80": {step: Counter[str]()}, "sm_90": {"fill": Counter[str]()}}
    assert kernel_report.complaints({"sm_80": kernels["sm_80"]}, ["step<float, SigmoidTanh<float>, 2, 64>"], none) == []
    assert kernel_report.complaints(kernels, ["fill"], none) == [
        "sm_80: fill is not compiled, but in kernels.def",
        f"sm_80: {step} is compiled, but not in kernels.def",
    ]
    many = {"sm_90": {f"f{i}": "" for i in range(97)}}
    zeros = {"sm_90": {name: Counter[str]() for name in many["sm_90"]}}
    assert kernel_report.complaints(many, [*many["sm_90"]], zeros) == ["sm_90: 97 kernels, 96 are allowed"]
    assert kernel_report.complaints({}, ["fill"], {}) == ["there are no kernels"]


SASS = """
arch = sm_75
\t\tFunction : void fusecell::cuda::tensor_correlate<float>(fusecell::cuda::TensorConvolutionArgs<float>)
        /*0100*/                   EXIT ;
arch = sm_90a
\t\tFunction : void fusecell::cuda::tensor_correlate<float>(fusecell::cuda::TensorConvolutionArgs<float>)
        /*0110*/                   HMMA.1688.F32.TF32 R40, R16.reuse, R20, R40 ;
        /*0120*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0121*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR12], R24 gsb0 ;
        /*0122*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
\t\tFunction : void fusecell::cuda::correlate<fusecell::bfloat16>(fusecell::cuda::ConvolutionArgs<fusecell::bfloat16>)
        /*0130*/                   HFMA2.MMA R40, R16, R20, R40 ;
\t\tFunction : void fusecell::cuda::tensor_parameter_gradient<float>(fusecell::cuda::Args<float>)
        /*0140*/                   DADD R40, R16, R20 ;
"""


@pytest.mark.usefixtures("tools")
def test_report_wants_tensor_cores_for_their_own_path_and_for_nothing_else() -> None:
    import kernel_report

    tensor, plain, sums = "tensor_correlate<float>", "correlate<bfloat16>", "tensor_parameter_gradient<float>"
    counted = kernel_report.matrix_instructions(SASS)
    of_warpgroups = {"HMMA": 1, "HGMMA": 2, "WARPGROUP.DEPBAR": 1}
    assert counted == {"sm_75": {tensor: {}}, "sm_90a": {tensor: of_warpgroups, plain: {}, sums: {}}}
    kernels = {gpu: dict.fromkeys(names, "") for gpu, names in counted.items()}
    assert kernel_report.complaints({"sm_90a": kernels["sm_90a"]}, [tensor, plain, sums], counted) == []
    assert kernel_report.complaints({"sm_75": kernels["sm_75"]}, [tensor], counted) == []
    wrong = {"sm_90a": {tensor: Counter[str](), plain: Counter({"HMMA": 1}), sums: Counter[str]()}}
    assert kernel_report.complaints({"sm_90a": kernels["sm_90a"]}, [tensor, plain, sums], wrong) == [
        "sm_90a: tensor_correlate<float> does not use tensor cores",
        "sm_90a: correlate<bfloat16> uses tensor cores",
    ]
    one_by_one = {"sm_90a": {tensor: Counter({"HMMA": 9, "HGMMA": 2, "WARPGROUP.DEPBAR": 2})}}
    assert kernel_report.complaints({"sm_90a": {tensor: ""}}, [tensor], one_by_one) == [
        "sm_90a: tensor_correlate<float> waits for each product of a warpgroup"
    ]


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize(
    ("gpu", "registers", "shared", "expected"),
    [
        ("sm_90a", 72, 77824, 3),
        ("sm_90a", 72, 77825, 2),
        ("sm_90", 128, 0, 2),
        ("sm_90", 129, 0, 1),
        ("sm_90", 32, 0, 8),
        ("sm_75", 64, 0, 4),
        ("sm_86", 80, 50176, 2),
        ("sm_86", 80, 50177, 1),
        ("sm_75", 100, 32768, 2),
        ("sm_75", 100, 32769, 1),
    ],
)
def test_how_many_blocks_a_multiprocessor_holds(gpu: str, registers: int, shared: int, expected: int) -> None:
    import kernel_report

    assert kernel_report.blocks_at_once(gpu, registers, shared) == expected


# ------------------------------------------------------------------------------------------------ fusecell info
def gpu_text(monkeypatch: pytest.MonkeyPatch, driver: int, devices: list[dict[str, object]]) -> str:
    """What info says where the CUDA backend is built."""
    module = ModuleType("fusecell._cuda")
    vars(module).update(build_info=lambda: {"runtime": 13000, "driver": driver}, devices=lambda: devices)
    vars(module).update(hopper_wanted=lambda: False)
    monkeypatch.setitem(sys.modules, "fusecell._cuda", module)
    monkeypatch.setattr(_dispatch, "tensor_cores", lambda backend: True)
    return "\n".join(f"{name} {value}" for name, value in info.report())


def test_info_names_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    h100 = {"name": "NVIDIA H100", "compute_capability": "9.0", "memory": 80 * 2**30}
    text = gpu_text(monkeypatch, 13000, [h100])
    assert "GPU 0 NVIDIA H100, compute capability 9.0, 80.0 GiB" in text
    assert "part of the module; needs driver 580 or newer, the driver here knows CUDA 13.0" in text
    assert "rebuild" not in text


def test_info_survives_an_old_driver_and_none(monkeypatch: pytest.MonkeyPatch) -> None:
    text = gpu_text(monkeypatch, 12040, [{"not": "asked for"}])
    assert "needs driver 580 or newer, the driver here knows CUDA 12.4" in text
    assert re.search("missing .*GPU", text)
    assert "no driver answers here" in gpu_text(monkeypatch, 0, [])


def test_info_says_how_to_get_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fusecell._cuda", None)  # importing it raises ModuleNotFoundError
    monkeypatch.setenv("PATH", "/nowhere")
    text = "\n".join(f"{name} {value}" for name, value in info.report())
    assert re.search("missing .*CUDA compiler, CUDA kernels", text)
    assert "FUSECELL_CUDA=on pip install --no-cache-dir --force-reinstall --no-binary fusecell fusecell" in text
