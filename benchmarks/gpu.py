"""What the heavy parts of the pipeline take on a GPU: models of real size, with random weights made on the device.

    python benchmarks/gpu.py [--shape llama31_8b] [--parts extraction,scoring] [--output gpu.json]

extraction   documents through the subject's blocks up to the hook, and through the whole SAE
scoring      written texts through the same blocks, and through some columns of the SAE
generation   explanations of features, by feature tokens
preference   DPO steps by TRL: LoRA adapters in float32, blocks checkpointed, the model without adapters as reference

A part is a process of its own, so its memory is its own; a line each on standard output, progress on standard error.
Memory is compared with what `sae-explainer plan` says of the same sizes (saeexplainer/costs/memory.py). A GPU's is the
most that torch's allocator had given out; a CPU's, all tensors that were there at once. docs/SCALE.md says more.
"""

import argparse
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import weakref
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu_parts import BENCHES, PARTS, Bench, Work

from saeexplainer.costs.memory import GIB, Memory

if TYPE_CHECKING:
    import torch

WITHIN = 0.15  # by which measured memory may differ from the plan
# Dense bfloat16 TFLOP/s by what a device's name holds, first match; NVIDIA's data sheet of each, where figures with
# sparsity are twice these.
PEAKS = {
    "H200": 989, "H100 NVL": 835, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121,
}  # fmt: skip


@dataclass(frozen=True)
class Hardware:
    """What measured."""

    device: str  # name
    memory_bytes: int | None  # None: a CPU
    driver: str | None  # as nvidia-smi says it; None: a CPU, or no nvidia-smi
    cuda: str | None  # of torch
    torch: str
    transformers: str
    peft: str
    trl: str
    sae_lens: str


@dataclass(frozen=True)
class Result:
    """What one part took."""

    bench: Bench
    hardware: Hardware
    counted: str  # which tokens
    tokens: int  # of a pass
    passes: list[float]  # seconds of each
    seconds: float  # their median
    tokens_per_second: float
    flops: int | None  # of a pass, for extraction and scoring
    peak_tflops: float | None  # of the device, dense bfloat16; None: not known
    share_of_peak: float | None
    peak_bytes: int  # the largest at once, set-up aside
    reserved_bytes: int | None  # that the allocator held; None: a CPU
    planned: Memory
    planned_bytes: int
    ratio: float  # measured over planned


class Peak:
    """The most bytes of tensors that are on a device at once."""

    def __init__(self, device: "torch.device") -> None:
        """Start to count."""
        self.device = device
        self.counter = None if device.type == "cuda" else counter()

    def __enter__(self) -> "Peak":
        if self.counter:
            self.counter.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.counter:
            self.counter.__exit__(*error)

    def reset(self) -> None:
        """Forget what is no longer there."""
        import torch

        if self.counter:
            self.counter.peak = self.counter.now
        else:
            torch.cuda.reset_peak_memory_stats(self.device)

    def bytes(self) -> tuple[int, int | None]:
        """Given out at most, and held by the allocator at most."""
        import torch

        if self.counter:
            return self.counter.peak, None
        return torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device)


def counter() -> Any:
    """A mode in which every tensor that an operation gives is counted until its storage is freed."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_map_only

    class Counter(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.now = self.peak = 0
            self.known: set[int] = set()

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            """Run it, and look at what comes out."""
            found = operation(*args, **(kwargs or {}))
            tree_map_only(torch.Tensor, self.count, found)
            return found

        def count(self, tensor: "torch.Tensor") -> None:
            """Count a tensor's storage once."""
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in self.known or tensor.device.type != "cpu":
                return
            self.known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.free, key, size)

        def free(self, key: int, size: int) -> None:
            """A storage is gone."""
            self.known.discard(key)
            self.now -= size

    return Counter()


def measure(name: str, bench: Bench, peak_tflops: float | None) -> Result:
    """Set a part up and run it, on a GPU if there is one."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    part, hardware = PARTS[name], hardware_of(device)
    peak_tflops = peak_tflops or next((peak for known, peak in PEAKS.items() if known in hardware.device), None)
    with Peak(device) as memory:
        work = part.set_up(bench, device)
        gc.collect()
        memory.reset()
        passes = work.run(bench.passes + 1)[1:]
        used, reserved = memory.bytes()
    seconds, planned = statistics.median(passes), part.planned(bench)
    return Result(
        bench, hardware, part.tokens, work.tokens, passes, seconds, work.tokens / seconds, work.flops, peak_tflops,
        share(work, seconds, peak_tflops), used, reserved, planned, planned.total, used / planned.total,
    )  # fmt: skip


def share(work: Work, seconds: float, peak_tflops: float | None) -> float | None:
    """Of the device's peak that the counted operations are."""
    if work.flops is None or peak_tflops is None:
        return None
    return work.flops / seconds / (peak_tflops * 1e12)


def hardware_of(device: "torch.device") -> Hardware:
    """Names and versions."""
    from importlib.metadata import version

    import torch

    gpu = device.type == "cuda"
    packages = {name: version(name) for name in ("torch", "transformers", "peft", "trl")}
    return Hardware(
        device=torch.cuda.get_device_name(device) if gpu else f"CPU, {torch.get_num_threads()} threads",
        memory_bytes=torch.cuda.get_device_properties(device).total_memory if gpu else None,
        driver=driver() if gpu else None, cuda=torch.version.cuda, **packages, sae_lens=version("sae-lens"),
    )  # fmt: skip


def driver() -> str | None:
    """The driver's version."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    return found[0] if found else None


def in_this_process(name: str, bench: Bench, peak_tflops: float | None) -> dict[str, Any]:
    """The fields of a part's result, or `error`: a line that says what to lower."""
    try:
        return asdict(measure(name, bench, peak_tflops))
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    part = PARTS[name]
    return {
        "error": f"{name}: out of memory; planned {part.planned(bench).total / GIB:,.1f} GiB; lower --{part.lower} "
        f"(now {getattr(bench, part.lower)}) or take a larger device"
    }  # fmt: skip


def out_of_memory(error: Exception) -> bool:
    """Whether a device's allocator, or a CPU's, gave up."""
    import torch

    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or "DefaultCPUAllocator" in str(error)


def in_own_process(name: str, bench: Bench, peak_tflops: float | None) -> dict[str, Any]:
    """As `in_this_process`, in a process that ends with the part."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        asked = json.dumps({"name": name, "bench": asdict(bench), "peak_tflops": peak_tflops})
        command = [sys.executable, __file__, "--one", asked, "--output", str(path)]
        # One device: of several, the trainer would use all.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        done = subprocess.run(command, env=os.environ | {"CUDA_VISIBLE_DEVICES": visible}, check=False)
        if done.returncode or not path.is_file():
            return {"error": f"{name}: the process ended with status {done.returncode}; see above"}
        return json.loads(path.read_text(encoding="utf-8"))


def line(name: str, found: dict[str, Any]) -> str:
    """A part in one line."""
    if "error" in found:
        return f"error: {found['error']}"
    text = f"{name}: {found['seconds']:.3f} s a pass, {found['tokens_per_second']:,.0f} tokens/s {found['counted']}"
    if found["share_of_peak"] is not None:
        text += f", {found['share_of_peak']:.1%} of {found['peak_tflops']:,.0f} TFLOP/s"
    verdict = "within" if abs(found["ratio"] - 1) <= WITHIN else "NOT within"
    used, planned = found["peak_bytes"] / GIB, found["planned_bytes"] / GIB
    return f"{text}; {used:.3f} GiB, planned {planned:.3f}: {found['ratio']:.2f}, {verdict} {WITHIN:.0%}"


def asked_for() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python benchmarks/gpu.py")
    parser.add_argument("--shape", choices=BENCHES, default="llama31_8b")
    parser.add_argument("--parts", default=",".join(PARTS), help="with commas between; left out, all")
    parser.add_argument("--output", type=Path, help="where to write all figures, as JSON")
    parser.add_argument("--peak", type=float, metavar="TFLOPS", help="the device's dense bfloat16 TFLOP/s")
    for part in PARTS.values():
        parser.add_argument(f"--{part.lower}", type=int, metavar="N", help="at once; left out, the shape's")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a part, in this process
    options = parser.parse_args()
    for name in options.parts.split(","):
        if name not in PARTS:
            parser.error(f"--parts: {name!r} is unknown; choose from {', '.join(PARTS)}")
    return options


def main() -> None:
    """Run the parts one after the other."""
    options = asked_for()
    if options.one:
        asked = json.loads(options.one)
        found = in_this_process(asked["name"], Bench(**asked["bench"]), asked["peak_tflops"])
        options.output.write_text(json.dumps(found), encoding="utf-8")
        return
    given = {part.lower: getattr(options, part.lower) for part in PARTS.values()}
    bench = replace(BENCHES[options.shape], **{name: count for name, count in given.items() if count})
    found = {}
    for name in options.parts.split(","):
        found[name] = in_own_process(name, bench, options.peak)
        print(line(name, found[name]), flush=True)
    if options.output:
        options.output.write_text(
            json.dumps({"shape": options.shape, "parts": found}, indent=2) + "\n", encoding="utf-8"
        )
    sys.exit(any("error" in part for part in found.values()))


if __name__ == "__main__":
    main()
