"""`vaefast lecture`: a lecture's claims about VAEs, run and checked on digits."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import backends
from .._info import info
from ..train import InputError
from .common import Out, Overwrite, Seed, default_folder, input_errors, need, say

if TYPE_CHECKING:
    from ..lecture import Claim
    from ..report import Page
    from ..train.run_folder import RunFolder


def lecture(
    quick: Annotated[
        bool, typer.Option("--quick", help="Less of everything, to see that it runs.")
    ] = False,
    only: Annotated[
        str | None, typer.Option(help="Some claims, with commas: coin,labels,samples,bounds,...")
    ] = None,
    seed: Seed = 0,
    out: Out = None,
    overwrite: Overwrite = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="torch's threads.", show_default="torch's own")
    ] = None,
) -> None:
    """Run a lecture's claims about VAEs on scikit-learn's digits, and write down what is seen.

    Each claim gives a number, a picture and a paragraph; where it does not hold on these digits,
    the report says so. Writes report.html and summary.json into the folder.
    """
    with input_errors():
        need("demo", "matplotlib", "sklearn")
        from ..lecture import CLAIMS
        from ..train.run_folder import RunFolder

        names = list(CLAIMS)
        if only is not None:
            asked = [name.strip() for name in only.split(",")]
            unknown = [name for name in asked if name not in CLAIMS]
            if unknown:
                raise InputError(
                    f"--only takes {', '.join(CLAIMS)}, got {', '.join(map(repr, unknown))}"
                )
            names = [name for name in CLAIMS if name in asked]
        with (
            _threads(threads),
            RunFolder(out or default_folder("lecture"), overwrite=overwrite, say=say) as run,
        ):
            _run(run, names, quick, seed)


def _run(run: RunFolder, names: list[str], quick: bool, seed: int) -> None:
    import torch

    from ..lecture import CLAIMS, Context
    from ..train.run_folder import CONFIG

    facts = info()
    settings: dict[str, Any] = {
        "command": "lecture",
        "quick": quick,
        "seed": seed,
        "claims": names,
        "threads": torch.get_num_threads(),
        "backend": backends.select("cpu"),
        "versions": {name: facts[name] for name in ("vaefast", "torch", "python")},
    }
    run.write_json(CONFIG, settings)
    begin = time.perf_counter()
    context = Context(quick=quick, seed=seed, say=say)
    found: dict[str, Claim] = {}
    seconds: dict[str, float] = {}
    for name in names:
        start = time.perf_counter()
        found[name] = CLAIMS[name](context)
        seconds[name] = time.perf_counter() - start
        say(f"{name}: {_WORDS[found[name].holds]}. {found[name].outcome}")
        # After each, so that what is there outlives a Ctrl-C.
        _write(run, settings, found, seconds)
    say(f"{time.perf_counter() - begin:.0f} s in all")
    say(f"{run.file('report.html')}")


_WORDS = {True: "holds", False: "does not hold here", None: "holds in part"}


def _write(
    run: RunFolder, settings: dict[str, Any], found: dict[str, Claim], seconds: dict[str, float]
) -> None:
    from ..train.files import whole
    from ..train.run_folder import REPORT, SUMMARY

    claims = {
        name: {
            "claim": claim.says,
            "holds": claim.holds,
            "outcome": claim.outcome,
            "numbers": claim.numbers,
            "seconds": seconds[name],
        }
        for name, claim in found.items()
    }
    run.write_json(SUMMARY, {"settings": settings, "claims": claims})
    with whole(run.file(REPORT)) as part:
        part.write_text(_page(settings, found, seconds).html(), encoding="utf-8")


def _page(settings: dict[str, Any], found: dict[str, Claim], seconds: dict[str, float]) -> Page:
    from ..report import page
    from ..report.page import Page

    document = Page(
        "VAEs: a lecture's claims, run on digits",
        "Each claim is trained and measured on scikit-learn's 1,797 handwritten digits of 8x8 "
        "pixels with 17 levels: 1,197 to train on, 240 to say when to stop, 360 to measure on.",
    )
    if settings["quick"]:
        hurried = "A quick run: models are hardly trained, and what it says of them means little."
        document.section("Quick run", [page.paragraph(hurried)])
    rows = [[claim.title, _WORDS[claim.holds]] for claim in found.values()]
    document.section("Outcome", [page.table(["claim", "on these digits"], rows, "The claims")])
    for claim in found.values():
        parts = [page.paragraph(claim.says), page.verdict(claim.outcome, claim.holds)]
        document.section(claim.title, [*parts, *claim.parts])
    times = [(name, f"{value:.0f} s") for name, value in seconds.items()]
    document.section(
        "Settings",
        [
            page.table(["", "value"], page.flat(settings), "What this run was asked for"),
            page.table(["claim", "time"], times, "A model is trained by the first that needs it"),
        ],
    )
    return document


@contextlib.contextmanager
def _threads(count: int | None) -> Any:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
