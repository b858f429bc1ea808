"""Writes the README's figures from the files under scripts/results/, so that no number in it was typed by hand.

python -m scripts.readme_figures          rewrites README.md between its markers
python -m scripts.readme_figures --check  fails if README.md differs from what the files say
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.origin import ORIGIN_A100

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "scripts" / "results"
GPU = "h100"
MODELS = (
    ("gemma4-31b", 2401),
    ("gemma4-31b", 32768),
    ("gemma3-27b", 2401),
    ("qwen3-32b", 2401),
    ("qwen3-8b", 2401),
    ("qwen3-8b", 32768),
)


def load(name: str, folder: str = GPU) -> dict[str, Any]:
    """One results file."""
    return json.loads((RESULTS / folder / f"{name}.json").read_text())


def source(data: dict[str, Any], name: str, folder: str = GPU) -> str:
    """The line under a table that says where it comes from."""
    versions = data.get("versions", data)
    return (
        f"<sub>{data['gpu'] or data['cpu']}, torch {versions['torch']}, triton {versions['triton']}, commit "
        f"{data['commit']}, {data['date'][:10]}; [{name}.json](scripts/results/{folder}/{name}.json).</sub>"
    )


def first_command() -> str:
    """The first command of the README, and what it said on a CPU: stdout, then stderr."""
    name = "first-command"
    data = load(name, "cpu")
    told = ["Text goes to stdout, everything else to stderr:", ""]
    told += [f"    {line}".rstrip() for line in f"{data['stdout']}\n{data['stderr']}".splitlines()]
    return "\n".join([f"    {data['first_command']}", "", *told, "", source(data, name, "cpu")]) + "\n"


def rates(rung: dict[str, Any]) -> str:
    """The cells of one measured configuration."""
    if rung["error"]:
        return f"failed: {rung['error'].splitlines()[0]} | | | | | "
    return (
        f"{rung['kept_decode']:.2f} ± {rung['kept_decode_sd']:.2f} | {rung['mbu']:.1%} | {rung['kept_prefill']:.0f} | "
        f"{rung['mfu']:.1%} | {rung['peak_gib']:.1f} | {rung['runs']} x {rung['generated']}"
    )


RATES = "decode tok/s | MBU | prefill tok/s | MFU | peak memory GiB | runs x tokens |"


def ladder() -> list[str]:
    """Gemma-4-31B, one idea after the other."""
    name = "ladder-gemma4-31b-2401"
    data = load(name)
    lines = [
        "### Gemma-4-31B bf16, one idea after the other",
        "",
        f"Prompt {data['prompt']} tokens, random weights at the true shape, batch 1. MBU is the share of the read "
        f"bandwidth measured in the same run ({data['read_bandwidth'] / 1e9:.0f} GB/s), MFU that of the bf16 matmul "
        f"rate ({data['matmul_rate'] / 1e12:.0f} TFLOP/s) for the operations that this prefill must do: every layer's "
        "products, the keys a query sees, the last position's logits. The last row has it all and is what `generate` "
        "does.",
        "",
        f"| configuration | {RATES}",
        "|---|---|---|---|---|---|---|",
        *(f"| {rung['rung']} | {rates(rung)} |" for rung in data["rungs"]),
    ]
    return [*lines, "", source(data, name), ""]


def models() -> list[str]:
    """Every model measured, with everything on."""
    lines = [
        "### Models and contexts, everything on, bf16",
        "",
        f"| model | prompt | {RATES}",
        "|---|---|---|---|---|---|---|---|",
    ]
    sources = []
    for model, prompt in MODELS:
        name = f"ladder-{model}-{prompt}"
        data = load(name)
        lines.append(f"| {model} | {prompt} | {rates(data['rungs'][-1])} |")
        sources.append(source(data, name))
    return [*lines, "", *sources, ""]


def roofline() -> list[str]:
    """Where the step's time goes."""
    name = "roofline-gemma4-31b-2401"
    data = load(name)
    lines = [
        f"### Where a decode step's {data['step_us'] / 1e3:.2f} ms go",
        "",
        "| part | GB | floor us | measured us | share | launches |",
        "|---|---|---|---|---|---|",
    ]
    for part in data["parts"]:
        share = f"{part['floor_us'] / part['us']:.1%}" if part["bytes"] else ""
        lines.append(
            f"| {part['part']} | {part['bytes'] / 1e9:.2f} | {part['floor_us']:.0f} | {part['us']:.0f} | {share} | "
            f"{part['launches']} |"
        )
    return [*lines, "", source(data, name), ""]


def loading() -> list[str]:
    """Weights from file to GPU."""
    name = "load-qwen3-8b"
    data = load(name)
    rates = {(row["loader"], row["cached"]): f"{row['gb_per_s']:.2f}" for row in data["rows"]}
    lines = [
        "### Loading Qwen3-8B, GB/s",
        "",
        f"{data['bytes'] / 1e9:.1f} GB of bf16 safetensors to the GPU, median of {len(data['rows'][0]['seconds'])}.",
        "",
        "| loader | files in the page cache | from disk |",
        "|---|---|---|",
        *(f"| {loader} | {rates[loader, True]} | {rates[loader, False]} |" for loader in ("runner", "safetensors")),
    ]
    return [*lines, "", source(data, name), ""]


def spread(cell: dict[str, Any]) -> str:
    """Mean and standard deviation in us."""
    return f"{cell['mean_us']:.1f} ± {cell['std_us']:.1f}"


def attention() -> list[str]:
    """Our attention kernels beside the origin's."""
    data = load("sdpa")
    cells = {
        (cell["shape"]["H"], cell["shape"]["K"], cell["shape"]["D"], cell["shape"]["L_kv"], cell["backend"]): cell
        for cell in data["cells"]
        if cell["shape"]["L_q"] == 1 and cell["timing"] == "cold" and cell["mean_us"] is not None
    }
    lines = [
        "### Attention of one token: ours (cold L2) beside the origin's (A100), us",
        "",
        "| heads, head_dim | keys | routed | standard | split-K | best of torch | origin: standard | origin: split-K |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (heads, kv_heads, dim), rows in ORIGIN_A100.items():
        for keys, (standard, splitk) in rows.items():
            shape = (heads, kv_heads, dim, keys)
            torches = [cell for key, cell in cells.items() if key[:4] == shape and "torch" in key[4]]
            shown = [
                cells[*shape, "routed"],
                cells[*shape, "standard"],
                cells[*shape, "splitk"],
                min(torches, key=lambda cell: cell["mean_us"]),
            ]
            ours = " | ".join(spread(cell) for cell in shown)
            lines.append(f"| {heads} over {kv_heads}, {dim} | {keys} | {ours} | {standard} | {splitk} |")
    lines += ["", "Mean ± standard deviation of six runs."]
    return [*lines, "", source(data, "sdpa"), ""]


def figures() -> str:
    """The whole section."""
    return "\n".join([*ladder(), *models(), *roofline(), *loading(), *attention()]).rstrip() + "\n"


SECTIONS: dict[str, Callable[[], str]] = {"first command": first_command, "figures": figures}


def filled(text: str) -> str:
    """The README with every section between its markers written anew."""
    for name, section in SECTIONS.items():
        start, end = f"<!-- {name}: python -m scripts.readme_figures -->", f"<!-- end of {name} -->"
        head, rest = text.split(start)
        text = f"{head}{start}\n\n{section()}\n{end}{rest.split(end)[1]}"
    return text


def main() -> int:
    text = README.read_text()
    if "--check" in sys.argv:
        return 0 if filled(text) == text else 1
    README.write_text(filled(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
