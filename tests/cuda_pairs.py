"""What the CUDA kernel of `mmd` issues per pair of points on sm_90, to a table of docs/cuda.md.

`python tests/cuda_pairs.py MODULE` reads a module _C that nvcc built for sm_90 and writes
benchmarks/results/cuda-pairs-sm_90.csv and the table. No GPU is needed. Counted is one turn of the
loop over tiles, the shortest way through it that has the instructions of a call: a warp's 512 pairs
with their gradient in the block's own points, seven scales of the inverse multiquadric. What a
block does once, and a tile at the end of a sample, is left out.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import sass

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "cuda-pairs-sm_90.csv"
PAGE = ROOT / "docs" / "cuda.md"
COLUMNS = ("operator", "way", "dims", "instructions", "integer", "mufu", "tensor", "cycles")
COLUMNS += ("cublas", "cublas_tf32")
BEGIN, END = "<!-- pairs -->\n", "<!-- /pairs -->\n"
KERNEL = r"pairs_kernel.*MmdProducts"
PAIRS_PER_LANE, LANES, SCALES = 16, 32, 7
# Of a multiprocessor of an H200 in one cycle: lanes' instructions, integer ones, special functions,
# the tensor cores' operations in TF32, float32 operations, and bytes of 4.3 TB/s.
ISSUED, INTEGERS, SPECIALS, TENSOR, FLOAT32, BYTES = 128, 64, 16, 1893, 256, 16.5
# Of one m16n8k8.
OPERATIONS = 2 * 16 * 8 * 8
# A matrix of distances that is written, read forward and backward, and its gradient, written and
# read by two products.
EAGER_BYTES = 24


class Through(NamedTuple):
    """At least `times` instructions that `pattern` matches, in loops or elsewhere."""

    pattern: str
    times: int
    looped: bool = True


class Case(NamedTuple):
    """A way through the kernel: the dimensions of the points, what it must issue (in the innermost
    loops, or elsewhere) and what it must not, and how often those loops turn, by what they have."""

    way: str
    dims: int
    through: tuple[Through, ...]
    without: str
    trips: tuple[tuple[str, int], ...]
    # Instructions per pair.
    budget: float

    def __str__(self) -> str:
        return f"{self.way} {self.dims}"


# A scale's reciprocals, and a tile's points, 16 dimensions at a time: read in fours, and put into
# shared memory.
def _always(parts: int) -> tuple[Through, ...]:
    loads = (Through(pattern, parts, looped=False) for pattern in ("LDG.E.128", "STS.128"))
    return (Through("MUFU.RCP", SCALES * PAIRS_PER_LANE), *loads)


def _products(dims: int, budget: float) -> Case:
    # Of a distance three products for each of four groups of columns in every 8 dimensions, of a
    # gradient for each of eight in every 16.
    steps, parts = -(-dims // 8), -(-dims // 16)
    through = (Through("HMMA", 12 * steps), Through("HMMA", 24 * parts, looped=False))
    trips = (("HMMA", steps), ("MUFU", SCALES))
    return Case("tensor cores", dims, (*through, *_always(parts)), "(?!)", trips, budget)


def _differences(dims: int, budget: float) -> Case:
    # A gradient has a slope of each of 32 columns in two rows by shuffles, in every 16 dimensions,
    # and eight sums for either.
    steps, parts = -(-dims // 4), -(-dims // 16)
    fused = 64 * steps + 256 * parts + SCALES * PAIRS_PER_LANE
    through = (Through("SHFL", 64 * parts), Through("FFMA", fused))
    trips = (("SHFL", 4), ("MUFU", SCALES), ("FFMA", steps))
    return Case("differences", dims, (*through, *_always(parts)), "HMMA|BAR.RED", trips, budget)


CASES = [
    *(_products(dims, budget) for dims, budget in ((16, 84), (32, 99), (64, 129))),
    *(_differences(dims, budget) for dims, budget in ((16, 136), (32, 216), (64, 376))),
]


class Count(NamedTuple):
    """Of a lane, one turn."""

    all: int
    integer: int
    special: int
    tensor: int
    path: tuple[str, ...]


def turn(
    code: list[sass.Instruction | str],
    through: Sequence[Through],
    without: str = "(?!)",
    trips: Sequence[tuple[str, int]] = (),
) -> Count:
    """The shortest way once through the smallest loop that has room for `through`: for each regular
    expression on an instruction's operation, how many of them it has at least. Blocks with an
    operation of `without` are closed. A loop within that has none itself counts by the first of
    `trips` that it has."""
    graph = sass.blocks(code)
    closed = {i for i, b in enumerate(graph) if _has(b, without)}
    found = sass.loops(graph)
    bodies = [body for _, body in found]
    for head, body in sorted(found, key=lambda loop: len(loop[1])):
        inner = [b for b in bodies if b < body and not any(other < b for other in bodies)]
        times = dict.fromkeys(body, 1)
        looped = set().union(*inner)
        for loop in inner:
            for pattern, count in trips:
                if any(_has(graph[i], pattern) for i in loop):
                    times.update(dict.fromkeys(loop, count))
                    break
        path = _shortest(graph, head, body - closed, times, looped, through)
        if path is None:
            continue
        lines = [(i, times[b]) for b in path for i in graph[b].instructions]
        kinds = (sass.INTEGER, sass.SPECIAL, re.compile(r"HMMA\b"))
        return Count(
            sum(n for _, n in lines),
            *(sum(n for i, n in lines if kind.match(i.operation)) for kind in kinds),
            tuple(f"{n:3d} x {i.address:05x}  {i.text}" for i, n in lines),
        )
    raise ValueError(f"no loop has {through}")


def _has(block: sass.Block, pattern: str) -> bool:
    return any(re.match(pattern, i.operation) for i in block.instructions)


def _shortest(
    graph: list[sass.Block],
    head: int,
    body: set[int],
    times: dict[int, int],
    looped: set[int],
    through: Sequence[Through],
) -> tuple[int, ...] | None:
    """The blocks of the shortest path from a loop's head around it that has `through`."""
    order = [block for block in sass._order(graph) if block in body]
    place = {block: i for i, block in enumerate(order)}
    States = dict[tuple[int, ...], tuple[int, tuple[int, ...]]]
    best: dict[int, States] = {block: {} for block in body}
    if head not in body:
        return None
    have = {
        block: [
            times[block] * sum(bool(re.match(t.pattern, i.operation)) for i in here)
            if t.looped == (block in looped)
            else 0
            for t in through
        ]
        for block, here in ((block, graph[block].instructions) for block in body)
    }
    best[head][tuple(0 for _ in through)] = (0, ())
    ends: States = {}
    for block in order:
        for state, (length, path) in best[block].items():
            new = tuple(
                min(want, so_far + more)
                for so_far, more, (_, want, _) in zip(state, have[block], through, strict=True)
            )
            made = (length + times[block] * graph[block].count(), (*path, block))
            for following in graph[block].after:
                if following == head:
                    table = ends
                elif following in body and place[following] > place[block]:
                    table = best[following]
                else:
                    continue
                if new not in table or made[0] < table[new][0]:
                    table[new] = made
    whole = tuple(t.times for t in through)
    return ends[whole][1] if whole in ends else None


def measured(code: dict[str, list[sass.Instruction | str]], case: Case) -> Count:
    """What the kernel issues per lane and tile."""
    (kernel,) = (name for name in code if re.search(KERNEL, name))
    return turn(code[kernel], case.through, case.without, case.trips)


def cycles(count: Count) -> float:
    """Per pair, of a multiprocessor that does one after the other: what it issues, or what its
    slower units take of that, and the tensor cores' share."""
    each = (count.all / ISSUED, count.integer / INTEGERS, count.special / SPECIALS)
    products = count.tensor * OPERATIONS / (PAIRS_PER_LANE * LANES)
    return max(each) / PAIRS_PER_LANE + products / TENSOR


def rows(code: dict[str, list[sass.Instruction | str]]) -> Iterator[tuple[str, ...]]:
    """Of each case the results' line; beside them what cuBLAS and `torch.compile` would take."""
    for case in CASES:
        found = measured(code, case)
        each = [f"{n / PAIRS_PER_LANE:.1f}" for n in found[:3]]
        eager = [EAGER_BYTES / BYTES + 6 * case.dims / rate for rate in (FLOAT32, TENSOR)]
        others = [f"{n:.2f}" for n in (cycles(found), *eager)]
        tensor = f"{found.tensor / PAIRS_PER_LANE:.2f}"
        yield ("mmd", case.way, str(case.dims), *each, tensor, *others)


def table(lines: Sequence[Sequence[str]]) -> str:
    """Lines of COLUMNS in Markdown."""
    head = "| distances and gradients by | dimensions | all | integer | MUFU | HMMA | cycles "
    head += "| cuBLAS in float32, `torch.compile` | the same in TF32 |"
    made = [head, "|---|" + "---:|" * 8]
    made += ["| " + " | ".join(line[1:]) + " |" for line in lines]
    return "\n".join(made) + "\n"


def publish(lines: Sequence[Sequence[str]]) -> None:
    """Writes counts to their results file, and to the table of the page."""
    sass.write(RESULT, COLUMNS, lines)
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(before + BEGIN + table(lines) + END + after)


def main() -> None:
    import cuda_instructions

    publish(list(rows(cuda_instructions.kernels(Path(sys.argv[1])))))


if __name__ == "__main__":
    main()
