"""The command line: `run` measures, `report` draws tables and plots from the result files."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import torch

import vaefast as vf

from . import record, report
from .cases import collect


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run_parser = commands.add_parser("run", help="measure and write a result file")
    _run_arguments(run_parser)
    run_parser.set_defaults(action=run)
    commands.add_parser("list", help="the names of all cases").set_defaults(action=list_)
    report_parser = commands.add_parser("report", help="rewrite the tables and plots")
    report_parser.add_argument("--results", type=Path, default=record.RESULTS, metavar="FOLDER")
    report_parser.set_defaults(action=lambda args: report.write(args.results))
    facts_parser = commands.add_parser("facts", help="measure what docs/notes.md quotes")
    facts_parser.set_defaults(action=facts_)
    training_parser = commands.add_parser(
        "training", help="measure what `vaefast train`'s loop takes beside the model"
    )
    training_parser.add_argument("--threads", type=int, help="torch's threads")
    training_parser.add_argument("--rounds", type=int, default=40)
    training_parser.add_argument("--budget", type=float, default=20.0, help="seconds per case")
    training_parser.add_argument("--out", type=Path, help="a .json for the figures")
    training_parser.set_defaults(action=training_)
    args = parser.parse_args()
    args.action(args)


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    flag = argparse.BooleanOptionalAction
    parser.add_argument("--only", nargs="+", default=[], help="cases whose name contains one")
    parser.add_argument("--exactly", nargs="+", default=[], help="cases of these names")
    parser.add_argument("--implementations", nargs="+", default=[], help="all where not given")
    parser.add_argument("--quick", action="store_true", help="small sizes: only that it runs")
    parser.add_argument(
        "--out", type=Path, help="default: benchmarks/results/<machine>.json; none if --quick"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="torch's threads")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--budget", type=float, default=30.0, help="seconds per case and pass")
    parser.add_argument("--memory", action=flag, help="default: unless --quick")
    parser.add_argument(
        "--capabilities", action=flag, help="the CPU's other instruction sets; unless --quick"
    )


def run(args: argparse.Namespace) -> None:
    try:
        record.require_core()
        device = torch.device(args.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        fail(str(error).splitlines()[0])
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        cases = [c for c in collect(*args.only) if not args.exactly or c.name in args.exactly]
    except ValueError as error:
        fail(str(error))
    if not cases:
        fail(f"no case has a name of {args.exactly}; `python -m benchmarks list` has them all")
    # A quick run's figures are worth no file unless one is asked for.
    out = args.out or (None if args.quick else record.default_path(device))
    rounds = min(args.rounds, 3) if args.quick else args.rounds
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if busy > 0.5 and not (args.quick or args.implementations):
        print(f"other processes are running (load {busy:.1f}): expect wrong figures")
    entries, failed = [], []
    for number, case in enumerate(cases, 1):
        try:
            entry = record.run_case(
                case,
                device,
                quick=args.quick,
                rounds=rounds,
                budget=args.budget,
                with_memory=not args.quick if args.memory is None else args.memory,
                only=tuple(args.implementations),
            )
        except Exception:
            # The other cases are measured all the same.
            traceback.print_exc()
            failed.append(case.name)
            continue
        if entry["failed"]:
            failed.append(case.name)
            print(case.name, *entry["failed"], sep="\n  ", file=sys.stderr)
        # Saved after each case: an interrupted run keeps what it has.
        if out:
            record.save(out, device, [entry], args.quick)
        entries.append(entry)
        judged = [] if args.quick or args.implementations else report.judged(entry)
        print(f"[{number}/{len(cases)}]", *report.lines(entry), *judged, sep="\n", flush=True)
    every = not args.quick if args.capabilities is None else args.capabilities
    if every and device.type == "cpu" and vf.info()["native"].get("cpu_capability"):
        settings = ["--rounds", str(rounds), "--budget", str(args.budget)]
        settings += ["--device", "cpu", "--threads", str(torch.get_num_threads())]
        found = record.other_capabilities(
            [c.name for c in cases], settings + ["--quick"] * args.quick
        )
        for entry in entries:
            entry["capabilities"] = found[entry["name"]]
        if out:
            record.save(out, device, entries, args.quick)
    if out:
        print(f"written to {out}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def fail(reason: str) -> NoReturn:
    """Ends the command with one line."""
    print(f"benchmarks: {reason}", file=sys.stderr)
    raise SystemExit(2)


def facts_(args: argparse.Namespace) -> None:
    # It needs the compiled core, which the other commands can do without.
    from . import facts

    facts.write()


def training_(args: argparse.Namespace) -> None:
    # It needs Lightning, which the other commands can do without.
    from . import training

    if args.threads:
        torch.set_num_threads(args.threads)
    training.write(args.out, rounds=args.rounds, budget=args.budget)


def list_(args: argparse.Namespace) -> None:
    for case in collect():
        print(case.name)


if __name__ == "__main__":
    main()
