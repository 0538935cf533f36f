"""What every kernel needs on every supported GPU: compiles them ahead of time, without a GPU, and counts.

Run `python -m benchmarks.kernel_resources`; `--triton FOLDER` adds another version (`pip install --no-deps --target
FOLDER triton==3.6.0`), `--only TEXT` compiles some. It writes results/reference/kernels.md and exits with 1 if a kernel
spills registers or exceeds a limit that the default tiles promise to keep.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from benchmarks.kernel_variants import Variant, variants

ARCHITECTURES = (80, 90)
SHARED_LIMIT = 99 * 1024  # bytes per program that every GPU from sm_80 on has, sm_86 and sm_89 too
REGISTER_LIMIT = 65536  # per multiprocessor
OUTPUT = Path(__file__).parent.parent / "results" / "reference" / "kernels.md"
console = Console(stderr=True, soft_wrap=True, markup=False, emoji=False)


class Resources(NamedTuple):
    """Per program; `spills` counts instructions that move registers to local memory or back."""

    triton: str
    architecture: int
    kernel: str
    variant: str
    warps: int
    registers: int
    spills: int
    shared: int
    products: int  # tensor-core instructions

    def broken_limits(self) -> list[str]:
        limits = {
            f"{self.spills} spills": self.spills > 0,
            f"{self.shared} bytes of shared memory": self.shared > SHARED_LIMIT,
            f"{self.registers} registers in {self.warps} warps": self.registers * self.warps * 32 > REGISTER_LIMIT,
        }
        return [what for what, is_broken in limits.items() if is_broken]


def compile_variant(variant: Variant, architecture: int) -> Resources:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = variant.kernel.arg_names
    attributes: Any = {(names.index(name),): [["tt.divisibility", 16]] for name in variant.aligned}
    source = ASTSource(variant.kernel, dict(variant.signature), dict(variant.constants), attributes)
    options = {"num_warps": variant.warps, "num_stages": variant.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    registers, spills, products = read_binary(compiled.asm["cubin"])
    return Resources(
        triton.__version__, architecture, variant.kernel.__name__, variant.name, variant.warps, registers, spills,
        compiled.metadata.shared, products,
    )  # fmt: skip


def read_binary(cubin: bytes) -> tuple[int, int, int]:
    """Registers per thread, spill and tensor-core instructions, by the tools that come with Triton."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = run_tool(str(tools / "cuobjdump"), "-res-usage", file.name)
        code = run_tool(str(tools / "nvdisasm"), "-c", file.name)
    words = [word for line in code.splitlines() for word in line.split()]
    spills = sum(word.startswith(("STL", "LDL")) for word in words)
    products = sum(word.startswith(("HMMA", "HGMMA", "WGMMA")) for word in words)
    return int(usage.split("REG:")[1].split()[0]), spills, products


def run_tool(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def compile_all(only: str) -> list[Resources]:
    rows = []
    for architecture in ARCHITECTURES:
        for variant in variants():
            if only in f"{variant.kernel.__name__} {variant.name}":
                rows.append(compile_variant(variant, architecture))
                console.print(" ".join(map(str, rows[-1])), style="dim")
    return rows


def with_triton(folder: str | None, only: str) -> list[Resources]:
    """In a process of its own: one version of Triton, and never the interpreter."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    if folder:
        environment["PYTHONPATH"] = folder
    command = [sys.executable, "-m", "benchmarks.kernel_resources", "--as-json", "--only", only]
    process = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if process.returncode:
        raise SystemExit(f"the kernels did not compile with Triton from {folder or 'this environment'}; see above")
    return [Resources(*row) for row in json.loads(process.stdout)]


def as_markdown(rows: list[Resources]) -> str:
    lines = [
        "# Kernel resources",
        "",
        "Written by `python -m benchmarks.kernel_resources`: compiled ahead of time for sm_80 and sm_90 (registers of",
        "a thread, spill instructions, bytes of shared memory of a program, tensor-core instructions). Nothing here",
        "was run on a GPU, and nothing here says how fast a kernel is.",
        "",
        f"Limits: 0 spills, shared memory <= {SHARED_LIMIT} bytes, registers x threads <= {REGISTER_LIMIT}. "
        f"{sum(bool(row.broken_limits()) for row in rows)} of {len(rows)} kernels break one.",
        "",
    ]
    for version in sorted({row.triton for row in rows}):
        lines += [
            f"## Triton {version}",
            "",
            "| kernel | variant | warps | sm_80 | sm_90 |",
            "| --- | --- | --: | --- | --- |",
        ]
        found = {(row.kernel, row.variant, row.architecture): row for row in rows if row.triton == version}
        for kernel, variant in dict.fromkeys(key[:2] for key in found):
            cells = [found[kernel, variant, architecture] for architecture in ARCHITECTURES]
            lines.append(f"| {kernel} | {variant} | {cells[0].warps} | {cell(cells[0])} | {cell(cells[1])} |")
        lines.append("")
    return "\n".join(lines)


def cell(row: Resources) -> str:
    return f"{row.registers} regs, {row.spills} spills, {row.shared:,} B, {row.products} MMA"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triton", action="append", default=[], metavar="FOLDER", help="another version of Triton")
    parser.add_argument("--only", default="", help="only kernels whose name and variant contain this text")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--as-json", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.as_json:
        sys.stdout.write(json.dumps(compile_all(arguments.only)))
        return 0
    rows = [row for folder in (None, *arguments.triton) for row in with_triton(folder, arguments.only)]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(as_markdown(rows))
    broken = [(row, what) for row in rows for what in row.broken_limits()]
    for row, what in broken:
        console.print(
            f"{row.kernel} ({row.variant}) on sm_{row.architecture}, Triton {row.triton}: {what}", style="red"
        )
    console.print(f"{len(rows)} kernels compiled, {len(broken)} limits broken -> {arguments.output}")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
