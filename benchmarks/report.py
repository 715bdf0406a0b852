"""Tables, verdicts and plots from the result files: the README's section and docs/benchmarks.md."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from . import ROOT
from .case import BOTH, COMPILED, EAGER, FUSED, LIMIT, OPERATORS, STEP, TOGETHER
from .harness import FLOOR

Entry = dict[str, Any]

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
IMAGES = Path("docs") / "img"
LABELS = {
    EAGER: "eager",
    COMPILED: "torch.compile",
    "functional": "torch.nn.functional",
    "distributions": "torch.distributions",
    "products": "its three GEMMs alone",
    "chunked": "F.linear_cross_entropy in chunks",
    "keops": "KeOps",
    TOGETHER: "vaefast, compiled",
    LIMIT: "limit",
    OPERATORS: "its operators alone",
    FLOOR: "copy_",
}
# The README's table, behind whole training steps, has these of the machine that was measured last.
# They are small and large, bound by arithmetic and by memory, near eager's time and far from it.
FIRST_PAGE = (
    "sample_kl 128x20",
    "sample_kl 256x4x64x64",
    "nll bernoulli 64x3x256x256",
    "nll gaussian 64x3x128x128",
    "nll negative_binomial 128x4000",
    "nll multinomial 512x20000",
    "linear_nll multinomial 256x256x50000",
    "log_weights latent 64x128x50",
    "tc_terms 1024x10",
)
ROWS = 11
# What a peak may exceed outputs and gradients by: pages and malloc's headers; a state, a scalar.
SLACK = {"resident": 256 << 10, "cuda": 16 << 10, "allocator": 1 << 10}


# What a step may take above its limit, in multiples of its operators' own time; and from which
# share of the eager step on it must be ahead of the compiled one.
ABOVE, SHARE = 1.2, 0.1


def write(results: Path, root: Path = ROOT) -> None:
    """Rewrites the marked sections of README.md and docs/benchmarks.md, and the plots.

    Raises:
        ValueError: there are no results, or a document lacks the markers.
    """
    from . import plots

    machines = load(results)
    (root / IMAGES).mkdir(parents=True, exist_ok=True)
    pictures: list[str] = []
    name, data = last_measured(machines)
    plots.speed(data["machine"], first_page(data), root / IMAGES / f"speed-{name}.png")
    for name, data in machines.items():
        plots.speed(data["machine"], operators(data), root / IMAGES / f"speed-all-{name}.png")
        plots.memory(data["machine"], operators(data), root / IMAGES / f"memory-all-{name}.png")
        picture = IMAGES / f"batch-{name}.png"
        if plots.sweep(data["machine"], data["cases"], "tc_terms", root / picture):
            pictures.append(f"![Time and memory against the batch](img/{picture.name})")
    replace_section(root / "README.md", readme(machines))
    replace_section(root / "docs" / "benchmarks.md", document(machines))
    if pictures:
        replace_section(root / "docs" / "aggregate.md", "\n\n".join(pictures))
    for data in machines.values():
        print(data["machine"]["device"])
        for entry in data["cases"]:
            print(entry["name"], *judged(entry), sep="\n")


def load(results: Path) -> dict[str, dict[str, Any]]:
    """The result files by name, CPUs first, without those of quick runs and of other formats, such
    as a GPU run's."""
    found = {p.stem: json.loads(p.read_text()) for p in sorted(results.glob("*.json"))}
    kept = {
        name: data
        for name, data in found.items()
        if "cases" in data and "stages" not in data and not data["machine"]["quick"]
    }
    if not kept:
        raise ValueError(f"no results in {results}; measure with python -m benchmarks run")
    return dict(sorted(kept.items(), key=lambda item: item[1]["machine"]["kind"]))


def last_measured(machines: dict[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The machine with the latest figures."""
    return max(machines.items(), key=lambda item: max(e["date"] for e in item[1]["cases"]))


def first_page(data: dict[str, Any]) -> list[Entry]:
    """The README's cases: whole training steps beside their limits, where there are any; else the
    steps there are and those of `FIRST_PAGE`, else any that have a target."""
    if steps(data):
        return steps(data)
    whole = [e for e in data["cases"] if STEP in e["passes"]]
    by_name = {e["name"]: e for e in data["cases"]}
    others = [by_name[name] for name in FIRST_PAGE if name in by_name]
    others = others or [e for e in data["cases"] if e["targets"] and e not in whole]
    return [*whole, *others][:ROWS]


def steps(data: dict[str, Any]) -> list[Entry]:
    """Whole training steps with their limits."""
    return [entry for entry in data["cases"] if LIMIT in last_pass(entry)["implementations"]]


def operators(data: dict[str, Any]) -> list[Entry]:
    """All other cases."""
    return [entry for entry in data["cases"] if LIMIT not in last_pass(entry)["implementations"]]


def replace_section(path: Path, text: str) -> None:
    """Puts `text` between the markers of `path`."""
    before = path.read_text()
    if before.count(BEGIN) != 1 or before.count(END) != 1:
        raise ValueError(f"{path} must hold the lines {BEGIN} and {END} once each")
    head, rest = before.split(BEGIN)
    _, tail = rest.split(END)
    path.write_text(f"{head}{BEGIN}\n{text.strip()}\n{END}{tail}")


def readme(machines: dict[str, dict[str, Any]]) -> str:
    name, data = last_measured(machines)
    cases = first_page(data)
    if steps(data):
        rows, what = (
            step_table(cases, short=True),
            "Forward, backward and Adam; `limit`: without the replaced operations",
        )
    else:
        rows, what = summary_table(cases, short=True), "Forward and backward"
    parts = [
        f"![Speed-up over eager]({IMAGES.as_posix()}/speed-{name}.png)",
        rows,
        f"{provenance(data, cases)} {what}; memory is the peak above the inputs. "
        "Every case, machine and pass: [docs/benchmarks.md](docs/benchmarks.md).",
    ]
    return "\n\n".join(parts)


def document(machines: dict[str, dict[str, Any]]) -> str:
    parts = []
    for name, data in machines.items():
        cases = operators(data)
        about = data["machine"]
        detail = f", {about['capability']}" if about["kind"] == "cpu" else ""
        parts += [f"## {about['device']}{detail}", provenance(data, data["cases"])]
        if steps(data):
            parts += [
                "### Whole training steps",
                step_table(steps(data)),
                target_table(steps(data)),
                full_table(steps(data), data["machine"]["kind"] == "cuda"),
            ]
        parts += [
            f"![Speed-up over eager](img/speed-all-{name}.png)",
            f"![Peak memory](img/memory-all-{name}.png)",
            "### Forward and backward",
            summary_table(cases),
            "### Targets",
            target_table(cases),
            "### Every figure",
            full_table(cases, data["machine"]["kind"] == "cuda"),
        ]
        if any(entry.get("capabilities") for entry in cases):
            parts += ["### Instruction sets", capability_table(data["machine"], cases)]
    return "\n\n".join(parts)


def provenance(data: dict[str, Any], cases: Sequence[Entry]) -> str:
    """One sentence on where and from what the figures come."""
    about = data["machine"]
    marks = sorted({f"{(e['commit'] or 'none')[:10]}{'+' * e['dirty']}" for e in cases})
    where = [about["device"]]
    if about["kind"] == "cpu":
        where += [f"{about['threads']} threads", f"{about['capability']} kernels"]
    with_ = [f"torch {about['torch']}", f"Python {about['python']}", f"vaefast {about['vaefast']}"]
    if about["kind"] == "cuda":
        with_.append(f"triton {about['triton']}")
    last = max((e["date"] for e in cases), default="never")
    return (
        f"Measured on {', '.join(where)}; {', '.join(with_)}; commit {', '.join(marks)}; {last}. "
        "float32, medians of interleaved runs in one process."
    )


def last_pass(entry: Entry) -> Entry:
    """Forward and backward, or the step."""
    passes: dict[str, Entry] = entry["passes"]
    return passes[STEP] if STEP in passes else passes[BOTH]


def fused_in(part: Entry) -> list[str]:
    return [n for n in part["implementations"] if n.startswith(FUSED)]


def summary_table(cases: Sequence[Entry], short: bool = False) -> str:
    """Times, speed-ups and memory, one row per case and vaefast backend; `short`: without
    torch.distributions and copy_."""
    head = [
        *("case", "eager", "torch.compile", "torch.distributions", "vaefast"),
        *("over eager", "over compile", "× copy_", "memory, eager", "memory, vaefast"),
    ]
    shown = [i for i in range(len(head)) if not (short and i in (3, 7))]
    rows = []
    for entry in cases:
        part = last_pass(entry)
        found = part["implementations"]
        ours = fused_in(part)
        for name in ours:
            mine = found[name]
            label = entry["name"] + (f" ({name.removeprefix(FUSED)})" if len(ours) > 1 else "")
            rows.append(
                [
                    label,
                    *(duration(found.get(n)) for n in (EAGER, COMPILED, "distributions")),
                    duration(mine),
                    *(times(mine.get("speedup", {}).get(n)) for n in (EAGER, COMPILED)),
                    times(mine.get("floors")),
                    *(size(found.get(n, {}).get("peak", {}).get("bytes")) for n in (EAGER, name)),
                ]
            )
    return table([head[i] for i in shown], [[row[i] for i in shown] for row in rows])


def step_table(cases: Sequence[Entry], short: bool = False) -> str:
    """Times of a step, what of it the replaced operations are, and peak memory; `short`: without
    the step that is both fused and compiled, and the compiled one's memory."""
    head = [
        *("training step", "eager", "torch.compile", "vaefast", "both", "limit"),
        *("replaced, of eager", "over eager", "over compile", "both over compile"),
        *("memory, eager", "memory, compile", "memory, vaefast"),
    ]
    shown = [i for i in range(len(head)) if not (short and i in (4, 9, 11))]
    rows = []
    for entry in cases:
        found = last_pass(entry)["implementations"]
        for name in fused_in(last_pass(entry)):
            mine = found[name]
            share = replaced(found)
            rows.append(
                [
                    entry["name"].removeprefix("training step "),
                    *(duration(found.get(n)) for n in (EAGER, COMPILED, name, TOGETHER, LIMIT)),
                    "–" if share is None else f"{100 * share:.1f}%",
                    *(times(mine.get("speedup", {}).get(n)) for n in (EAGER, COMPILED)),
                    times(found.get(TOGETHER, {}).get("speedup", {}).get(COMPILED)),
                    *(size(_peak(found, n)) for n in (EAGER, COMPILED, name)),
                ]
            )
    return table([head[i] for i in shown], [[row[i] for i in shown] for row in rows])


def replaced(found: Entry) -> float | None:
    """The share of the eager step that the replaced operations are."""
    eager, limit = (found.get(n, {}).get("median_us") for n in (EAGER, LIMIT))
    return None if eager is None or limit is None else max(0.0, 1 - limit / eager)


def _peak(found: Entry, name: str) -> int | None:
    peak: int | None = found.get(name, {}).get("peak", {}).get("bytes")
    return peak


def target_table(cases: Sequence[Entry]) -> str:
    rows = [
        [entry["name"], what, wanted, got, "reached" if reached else "**missed**", first]
        for entry in cases
        for what, wanted, got, first, reached in verdicts(entry)
    ]
    return table(["case", "what", "target", "measured", "", "first calls"], rows)


def verdicts(entry: Entry) -> Iterable[tuple[str, str, str, str, bool]]:
    """(what, target, measured, the same of first calls, reached) for each target of a case, and for
    its memory."""
    part = last_pass(entry)
    if LIMIT in part["implementations"]:
        yield from _step_verdicts(part)
        return
    for name in fused_in(part):
        mine, backend = part["implementations"][name], name.removeprefix(FUSED)
        for other, wanted in entry["targets"].items():
            first, its = mine.get("first_us"), part["implementations"].get(other, {})
            firsts = its["first_us"] / first if first and "first_us" in its else None
            if other == FLOOR:
                firsts = 1 / firsts if firsts else None
                got = mine.get("floors")
                reached = got is not None and got <= wanted
                what, sign = "time, multiple of copy_", "≤"
            else:
                got = mine.get("speedup", {}).get(other)
                reached = got is not None and got >= wanted
                what, sign = f"speed-up over {LABELS[other]}", "≥"
            labels = f"{backend}: {what}", f"{sign} {times(wanted)}"
            yield *labels, times(got), times(firsts), reached
        peak = mine.get("peak")
        if peak is not None and part["allowed"] is not None:
            allowed = part["allowed"]
            reached = peak["bytes"] <= allowed * 1.01 + SLACK[peak["by"]]
            yield f"{backend}: peak memory", f"≤ {size(allowed)}", size(peak["bytes"]), "", reached


def _step_verdicts(part: Entry) -> Iterable[tuple[str, str, str, str, bool]]:
    found = part["implementations"]
    limit, alone = (found[n].get("median_us") for n in (LIMIT, OPERATORS))
    for name in fused_in(part):
        mine, backend = found[name], name.removeprefix(FUSED)
        if None not in (limit, alone, mine.get("median_us")):
            above, got = (mine["median_us"] - limit) / alone, ""
            if "above" in mine:
                # Of the rounds' own differences: the machine is as slow for both terms of one.
                above, low, high = mine["above"]
                got = f" ({number(low)} – {number(high)})"
            what = f"{backend}: time above the limit, multiple of its operators alone"
            yield what, f"≤ {times(ABOVE)}", f"{times(above)}{got}", "", above <= ABOVE
        share, ratio = replaced(found), mine.get("speedup", {}).get(COMPILED)
        if share is not None and ratio is not None and share >= SHARE:
            yield f"{backend}: speed-up over torch.compile", "≥ 1x", times(ratio), "", ratio >= 1
        peak, least = _peak(found, name), _peak(found, LIMIT)
        if peak is not None and least is not None:
            allowed = least + part["allowed"]
            reached = peak <= allowed * 1.01 + SLACK["allocator"]
            yield f"{backend}: peak memory", f"≤ {size(allowed)}", size(peak), "", reached


def full_table(cases: Sequence[Entry], on_gpu: bool) -> str:
    """Every implementation and pass, with quartiles."""
    head = ["case", "pass", "implementation", "median", "quartiles", "first call"]
    head += ["ns/element", "GB/s", "over eager", "× copy_", "peak memory"]
    head += ["wall", "launches"] * on_gpu
    rows = []
    for entry in cases:
        for what, part in entry["passes"].items():
            for name, f in part["implementations"].items():
                quartiles = f"{micro(f['q1_us'])} – {micro(f['q3_us'])}" if "q1_us" in f else "–"
                row = [entry["name"], what, LABELS.get(name, name), duration(f), quartiles]
                row += [micro(f.get("first_us")), number(f.get("ns_per_element"))]
                row.append(number(f.get("gb_per_s")))
                row += [times(f.get("speedup", {}).get(EAGER)), times(f.get("floors"))]
                row.append(size(f.get("peak", {}).get("bytes")))
                if on_gpu:
                    row += [micro(f.get("wall_us")), str(f.get("launches", "–"))]
                rows.append(row)
    return table(head, rows)


def capability_table(about: Entry, cases: Sequence[Entry]) -> str:
    """Speed-up over eager per instruction set, eager measured anew beside each."""
    others = sorted({c for entry in cases for c in entry.get("capabilities", {})})
    rows = []
    for entry in cases:
        found = {**entry.get("capabilities", {}), about["capability"]: entry["passes"]}
        row = [entry["name"]]
        for capability in (*others, about["capability"]):
            part = last_pass({"passes": found[capability]}) if capability in found else None
            mine = part["implementations"][fused_in(part)[0]] if part else {}
            row.append(f"{duration(mine)} ({times(mine.get('speedup', {}).get(EAGER))})")
        rows.append(row)
    return table(["case", *others, about["capability"]], rows)


def lines(entry: Entry) -> list[str]:
    """A case for the terminal."""
    result = [entry["name"]]
    for what, part in entry["passes"].items():
        for name, f in part["implementations"].items():
            ratio = times(f.get("speedup", {}).get(EAGER))
            result.append(
                f"  {what:17} {LABELS.get(name, name):20} {duration(f):>10} {ratio:>7} "
                f"{times(f.get('floors')):>7} {size(f.get('peak', {}).get('bytes')):>10}"
                f"  {f.get('error', '')}".rstrip()
            )
    return result


def judged(entry: Entry) -> list[str]:
    """A case's verdicts for the terminal."""
    return [
        f"  {'reached' if reached else 'MISSED '} {what} {wanted}: {got}"
        for what, wanted, got, _, reached in verdicts(entry)
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def duration(figures: Entry | None) -> str:
    return micro((figures or {}).get("median_us"))


def micro(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value / 1000:.3g} ms" if value >= 999.5 else f"{value:.3g} µs"


def times(value: float | None) -> str:
    return "–" if value is None else f"{number(value)}x"


def number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else re.sub(r"\.0+$", "", f"{value:.3g}")


def size(value: float | None) -> str:
    if value is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 999.5 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.3g} {unit}"
