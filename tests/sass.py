"""What a GPU kernel issues per element, counted in its machine code: `python tests/sass.py
FILE.cubin [--kernel REGEX] --bytes 12 --elements 4`.

A Hopper multiprocessor has four schedulers that issue one instruction of 32 threads each per cycle;
integer instructions run at half that rate, the special-function unit (`MUFU`, conversions) at an
eighth. At 132 multiprocessors, 1.98 GHz and 4.3 TB/s a kernel that streams may issue RATES
instructions per byte; what it takes of its own is the largest of the three quotients.

Which path is counted. Of a kernel with a loop that moves the vectors, one turn of the innermost
such loop; of one without (Triton's), the kernel from its entry to its end. A path through it moves
`bytes` times `elements` in all, by the fewest loads and stores (so not the last vector's, which
goes element by element), through an instruction that each expression of `through` finds (the noise,
a divergence: what a flag of the call would leave out). Of these paths the shortest is counted: what
a branch may pass over, usual inputs pass over. The kernels' own such branches say `rarely` in
their source; compilers add those of a division. A loop within that the path must go through counts
`trips` times. A predicated instruction counts whether it runs or not, as it is issued.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

# Instructions that an H200 issues per byte that it copies: all, integer, special functions.
RATES = (7.8, 3.9, 0.97)

INTEGER = re.compile(
    r"(IMAD|IADD|IADD3|IABS|IMNMX|VIMNMX\d?|VIADD|VIADDMNMX|ISETP|LOP3|PLOP3|LEA|SHF|SEL|PRMT"
    r"|BMSK|SGXT|IDP|IDP4A|SHL|SHR|LOP|XMAD|VABSDIFF|VABSDIFF4|ISCADD|P2R|R2P|I2FP|F2IP)\b"
)
SPECIAL = re.compile(r"(MUFU|I2F|F2I|F2F|FRND|POPC|FLO|BREV)\b")
MEMORY = re.compile(r"(LDG|STG|LD|ST)\b(\S*)")


@dataclass
class Instruction:
    address: int
    text: str

    @cached_property
    def guard(self) -> str:
        """The predicate under which it runs, or nothing."""
        found = re.match(r"@(!?U?P\w+)\s", self.text)
        return found.group(1) if found else ""

    @cached_property
    def operation(self) -> str:
        """The opcode with its modifiers."""
        return re.sub(r"^@!?U?P\w+\s+", "", self.text).split()[0].rstrip(";")

    @property
    def opcode(self) -> str:
        return self.operation.split(".")[0]

    @property
    def target(self) -> str | None:
        """The label that a branch goes to."""
        found = re.search(r"`\((\S+?)\)", self.text)
        return found.group(1) if found and self.opcode in ("BRA", "JMP") else None

    @property
    def moved(self) -> int:
        """Bytes of global memory per thread."""
        found = MEMORY.match(self.operation)
        if not found:
            return 0
        for width, size in ((".128", 16), (".64", 8), ("16", 2), ("8", 1)):
            if re.search(
                rf"{re.escape(width)}\b" if width[0] == "." else rf"\.[US]{width}\b", self.operation
            ):
                return size
        return 4


@dataclass
class Block:
    instructions: list[Instruction]
    after: list[int] = field(default_factory=list)

    def count(self, which: re.Pattern[str] | None = None) -> int:
        return sum(which is None or bool(which.match(i.operation)) for i in self.instructions)


@dataclass(frozen=True)
class Count:
    """Of one path: instructions per element and what they bound."""

    kernel: str
    elements: int
    bytes_moved: int
    all: int
    integer: int
    special: int
    by_opcode: dict[str, int]
    path: tuple[str, ...]

    def per_element(self) -> tuple[float, float, float]:
        return (
            self.all / self.elements,
            self.integer / self.elements,
            self.special / self.elements,
        )

    def bound(self) -> float:
        """Arithmetic over memory: above 1 the instructions bound the kernel."""
        each = (self.all, self.integer, self.special)
        return max(n / rate for n, rate in zip(each, RATES, strict=True)) / self.bytes_moved


def tool(name: str) -> str | None:
    """One of NVIDIA's: the toolkit's, or the one that Triton brings."""
    found = shutil.which(name)
    spec = importlib.util.find_spec("triton")
    if found is None and spec is not None and spec.origin is not None:
        found = shutil.which(name, path=Path(spec.origin).parent / "backends/nvidia/bin")
    return found


def kernels(cubin: Path) -> dict[str, list[Instruction | str]]:
    """The code of each kernel of a cubin by its mangled name: instructions, and labels as text."""
    disassembler = tool("nvdisasm")
    if disassembler is None:
        raise FileNotFoundError("nvdisasm is neither in the PATH nor in Triton's package")
    text = subprocess.run([disassembler, "-c", cubin], capture_output=True, text=True, check=True)
    found: dict[str, list[Instruction | str]] = {}
    code: list[Instruction | str] = []
    for line in text.stdout.splitlines():
        if section := re.match(r"\s*\.section\s+\.text\.([^,\s]+)", line):
            code = found.setdefault(section.group(1), [])
        elif label := re.match(r"(\S+):$", line.strip()):
            code.append(label.group(1))
        elif instruction := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(.+?)\s*;", line):
            code.append(Instruction(int(instruction.group(1), 16), instruction.group(2)))
    return found


def blocks(code: list[Instruction | str]) -> list[Block]:
    """Basic blocks in the order of their addresses, the first the entry."""
    made: list[Block] = []
    labels: dict[str, int] = {}
    fresh = True
    for line in code:
        if isinstance(line, str):
            fresh = True
            labels[line] = len(made)
            continue
        if fresh:
            made.append(Block([]))
        # A label before any instruction names the block that follows.
        made[-1].instructions.append(line)
        fresh = line.opcode in ("BRA", "JMP", "EXIT", "RET", "CALL", "BRX")
    for number, block in enumerate(made):
        last = block.instructions[-1]
        falls = last.opcode not in ("EXIT", "RET", "BRA", "JMP", "BRX") or bool(last.guard)
        # A uniform branch has its predicate among its operands.
        if last.opcode == "BRA" and re.search(r"BRA\S*\s+!?U?P\w+,", last.text):
            falls = True
        if last.target is not None and not last.operation.startswith("BRA.DIV"):
            block.after.append(labels[last.target])
        if (falls or last.operation.startswith("BRA.DIV")) and number + 1 < len(made):
            block.after.append(number + 1)
    return made


def loops(graph: list[Block]) -> list[tuple[int, set[int]]]:
    """The natural loops: head and blocks."""
    order = _order(graph)
    place = {block: i for i, block in enumerate(order)}
    before: dict[int, list[int]] = {block: [] for block in order}
    for block in order:
        for following in graph[block].after:
            before[following].append(block)
    dominators = {order[0]: {order[0]}}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            known = [dominators[b] for b in before[block] if b in dominators]
            new = set.intersection(*known) | {block}
            if dominators.get(block) != new:
                dominators[block] = new
                changed = True
    found: dict[int, set[int]] = {}
    for block in order:
        for head in graph[block].after:
            if head not in dominators[block]:
                continue
            body = found.setdefault(head, {head})
            waiting = [block]
            while waiting:
                if (inner := waiting.pop()) not in body:
                    body.add(inner)
                    waiting += before[inner]
    return sorted(found.items(), key=lambda loop: place[loop[0]])


def _order(graph: list[Block]) -> list[int]:
    """Reverse post-order from the entry."""
    seen: set[int] = set()
    done: list[int] = []
    waiting: list[tuple[int, Iterator[int]]] = [(0, iter(graph[0].after))]
    seen.add(0)
    while waiting:
        block, following = waiting[-1]
        for other in following:
            if other not in seen:
                seen.add(other)
                waiting.append((other, iter(graph[other].after)))
                break
        else:
            done.append(block)
            waiting.pop()
    return done[::-1]


@dataclass(frozen=True)
class _Best:
    # Fewest of these in turn: subroutines called, loads and stores, instructions.
    calls: int
    accesses: int
    length: int
    path: tuple[int, ...]

    def key(self) -> tuple[int, int, int]:
        return (self.calls, self.accesses, self.length)


def _paths(
    graph: list[Block],
    head: int,
    body: set[int],
    ends: set[int],
    inner: set[int],
    trips: int,
    through: tuple[re.Pattern[str], ...],
) -> dict[int, _Best]:
    """Of the paths from `head` to a block of `ends` the best for each number of bytes moved."""
    order = [block for block in _order(graph) if block in body]
    # By the bytes so far, and which of `through` were met, a bit for each.
    best: dict[int, dict[tuple[int, int], _Best]] = {block: {} for block in body}
    best[head][0, 0] = _Best(0, 0, 0, ())
    result: dict[tuple[int, int], _Best] = {}
    place = {block: i for i, block in enumerate(order)}
    for block in order:
        here = graph[block]
        times = trips if block in inner else 1
        moved = times * sum(i.moved for i in here.instructions)
        accesses = times * sum(i.moved > 0 for i in here.instructions)
        calls = sum(i.opcode == "CALL" for i in here.instructions)
        meets = sum(
            any(p.search(i.text) for i in here.instructions) << bit for bit, p in enumerate(through)
        )
        for (so_far, met), found in best[block].items():
            state = (so_far + moved, met | meets)
            made = _Best(
                found.calls + calls,
                found.accesses + accesses,
                found.length + times * here.count(),
                (*found.path, block),
            )
            if block in ends:
                _keep(result, state, made)
            for following in here.after:
                if following in body and place[following] > place[block]:
                    _keep(best[following], state, made)
    whole = (1 << len(through)) - 1
    return {moved: made for (moved, met), made in result.items() if met == whole}


def _keep(table: dict[tuple[int, int], _Best], state: tuple[int, int], made: _Best) -> None:
    if state not in table or made.key() < table[state].key():
        table[state] = made


def count(
    name: str,
    code: list[Instruction | str],
    elements: int,
    bytes_per_element: float | None = None,
    trips: int = 1,
    through: Sequence[str] = (),
) -> Count:
    """The instructions of the full-vector path of a kernel, with an instruction for each regular
    expression of `through`; without `bytes_per_element` of the path that moves most."""
    graph = blocks(code)
    found = loops(graph)
    wanted = None if bytes_per_element is None else round(elements * bytes_per_element)
    must = tuple(re.compile(expression) for expression in through)
    candidates: list[tuple[int, int, _Best, set[int]]] = []
    whole = set(_order(graph))
    ends = {b for b in whole if graph[b].instructions[-1].opcode == "EXIT"}
    for head, body in [*found, (0, whole)]:
        is_loop = (head, body) in found
        inner = set().union(*(b for _, b in found if b < body or (not is_loop and b <= body)))
        last = {b for b in body if head in graph[b].after} if is_loop else ends
        paths = _paths(graph, head, body, last, inner, trips, must)
        for moved, best in paths.items():
            if moved > 0 and (wanted is None or moved == wanted):
                candidates.append((moved, -len(body) if is_loop else -len(graph), best, inner))
    if not candidates:
        raise ValueError(f"{name}: no path moves {wanted} bytes")
    # The most bytes by the fewest accesses, then the smallest loop that moves them.
    moved, _, best, inner = max(candidates, key=lambda c: (c[0], -c[2].accesses, c[1]))
    by_opcode: dict[str, int] = {}
    totals = [0, 0, 0]
    path = []
    for block in best.path:
        times = trips if block in inner else 1
        for i in graph[block].instructions:
            path.append(f"{i.address:05x}  {i.text}")
            by_opcode[i.operation] = by_opcode.get(i.operation, 0) + times
            kinds = (True, INTEGER.match(i.operation), SPECIAL.match(i.operation))
            totals = [n + times * bool(k) for n, k in zip(totals, kinds, strict=True)]
    return Count(name, elements, moved, totals[0], totals[1], totals[2], by_opcode, tuple(path))


# Of a table of counts: its results file, and the lines around it in a page.
COLUMNS = ("operator", "form", "pass", "dtype", "bytes", "instructions", "integer", "mufu", "bound")
BEGIN, END = "<!-- instructions -->\n", "<!-- /instructions -->\n"


def table(lines: Iterable[Sequence[object]]) -> str:
    """Lines of COLUMNS in Markdown."""
    head = "| operator | pass | dtype | bytes | all | integer | MUFU | arithmetic / memory |"
    made = [head, "|---|---|---|---:|---:|---:|---:|---:|"]
    for operator, form, *rest in lines:
        name = f"`{operator}` {form}".strip()
        made.append("| " + " | ".join([name, *map(str, rest)]) + " |")
    return "\n".join(made) + "\n"


def write(path: Path, columns: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    """A results file."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(lines)


def publish(lines: Sequence[Sequence[object]], result: Path, page: Path) -> None:
    """Writes counts to their results file, and to the table of a page."""
    write(result, COLUMNS, lines)
    before, rest = page.read_text().split(BEGIN)
    _, after = rest.split(END)
    page.write_text(before + BEGIN + table(lines) + END + after)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("cubin", type=Path)
    parser.add_argument("--kernel", default="", help="regular expression on the mangled name")
    parser.add_argument("--elements", type=int, default=4, help="per thread and turn")
    parser.add_argument("--bytes", type=float, help="per element; default: those of the path")
    parser.add_argument("--trips", type=int, default=1, help="of a loop within the counted one")
    parser.add_argument("--through", nargs="*", default=[], help="what the path must have")
    parser.add_argument("--opcodes", action="store_true", help="each opcode's count")
    parser.add_argument("--path", action="store_true", help="the instructions that are counted")
    args = parser.parse_args()
    print("all/el  int/el  mufu/el  bytes/el  bound  kernel")
    for name, code in kernels(args.cubin).items():
        if not re.search(args.kernel, name):
            continue
        try:
            got = count(name, code, args.elements, args.bytes, args.trips, args.through)
        except ValueError as error:
            print(error)
            continue
        every, integer, special = got.per_element()
        moved = got.bytes_moved / args.elements
        print(
            f"{every:6.1f}  {integer:6.1f}  {special:7.2f}  {moved:8g}  {got.bound():5.2f}  {name}"
        )
        if args.path:
            print("\n".join(got.path))
        if args.opcodes:
            for opcode, times in sorted(got.by_opcode.items(), key=lambda item: -item[1]):
                print(f"    {times:5d}  {opcode}")


if __name__ == "__main__":
    main()
