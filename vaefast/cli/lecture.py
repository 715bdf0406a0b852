"""`vaefast lecture`: a lecture's claims about VAEs, run and checked on digits."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import backends
from .._info import info
from ..train import InputError
from .common import Out, Overwrite, default_folder, input_errors, need, say

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
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**31 - 1, help="Same seed, same result.", show_default="0"),
    ] = None,
    out: Out = None,
    overwrite: Overwrite = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, or add claims to it.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="torch's threads.", show_default="torch's own")
    ] = None,
) -> None:
    """Run a lecture's claims about VAEs on scikit-learn's digits, and write down what is seen.

    Each claim gives a number, a picture and a paragraph; where it does not hold on these digits,
    the report says so. Writes report.html and summary.json into the folder. What an interrupted
    run has finished, claims and trained models, --resume does not do again.
    """
    with input_errors():
        need("demo", "matplotlib", "sklearn")
        from ..lecture import CLAIMS
        from ..train.run_folder import RunFolder

        asked = list(CLAIMS)
        if only is not None:
            asked = [name.strip() for name in only.split(",")]
            unknown = [name for name in asked if name not in CLAIMS]
            if unknown:
                raise InputError(
                    f"--only takes {', '.join(CLAIMS)}, got {', '.join(map(repr, unknown))}"
                )
        if resume and (out is None or overwrite):
            raise InputError("--resume needs --out, and excludes --overwrite")
        folder = out or default_folder("lecture")
        try:
            with (
                _threads(threads),
                RunFolder(folder, overwrite=overwrite, resume=resume, say=say) as run,
            ):
                settings = _settings(quick, seed or 0)
                if resume:
                    before = _resumed(run, settings, quick=quick, seed=seed)
                    asked = [*before, *asked] if only is not None else before
                settings["claims"] = [name for name in CLAIMS if name in asked]
                _run(run, settings)
        except KeyboardInterrupt:
            say(f"interrupted: vaefast lecture --out {folder} --resume goes on")
            raise typer.Exit(130) from None


def _settings(quick: bool, seed: int) -> dict[str, Any]:
    import torch

    facts = info()
    return {
        "command": "lecture",
        "quick": quick,
        "seed": seed,
        "claims": [],
        "threads": torch.get_num_threads(),
        "backend": backends.select("cpu"),
        "versions": {name: facts[name] for name in ("vaefast", "torch", "python")},
    }


def _resumed(
    run: RunFolder, settings: dict[str, Any], *, quick: bool, seed: int | None
) -> list[str]:
    """Takes the run's quick and seed over into the settings; the claims that it was asked for.

    Raises:
        InputError: it is no lecture, was asked for something else, or another version made it.
    """
    config = run.read_config()
    if config.get("command") != "lecture":
        raise InputError(f"{run.path} holds a run of vaefast {config.get('command')}, no lecture")
    for name, given in (("quick", quick or None), ("seed", seed), ("versions", None)):
        wanted = settings[name] if name == "versions" else given
        if wanted is not None and config.get(name) != wanted:
            of = "was made by" if name == "versions" else f"has --{name}"
            raise InputError(f"{run.path} {of} {config.get(name)}, got {wanted}")
    settings |= {name: config[name] for name in ("quick", "seed")}
    return list(config.get("claims", ()))


def _run(run: RunFolder, settings: dict[str, Any]) -> None:
    from ..lecture import CLAIMS, Context
    from ..train.run_folder import CONFIG, PARTS

    run.write_json(CONFIG, settings)
    begin = time.perf_counter()
    parts = run.file(PARTS)
    parts.mkdir(exist_ok=True)
    context = Context(quick=settings["quick"], seed=settings["seed"], say=say, folder=parts)
    found: dict[str, Claim] = {}
    seconds: dict[str, float] = {}
    for name in settings["claims"]:
        kept = f"{PARTS}/claim-{name}.json"
        if run.file(kept).exists():
            found[name], seconds[name] = _read_claim(run, kept)
            continue
        start = time.perf_counter()
        found[name] = CLAIMS[name](context)
        seconds[name] = time.perf_counter() - start
        say(f"{name}: {_WORDS[found[name].holds]}. {found[name].outcome}")
        run.write_json(kept, {"claim": asdict(found[name]), "seconds": seconds[name]})
        # After each, so that what is there outlives a Ctrl-C.
        _write(run, settings, found, seconds)
    _write(run, settings, found, seconds)
    say(f"{time.perf_counter() - begin:.0f} s in all")
    say(f"{run.file('report.html')}")


def _read_claim(run: RunFolder, name: str) -> tuple[Claim, float]:
    from ..lecture import Claim

    try:
        kept = json.loads(run.file(name).read_text())
        return Claim(**kept["claim"]), float(kept["seconds"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{run.file(name)} cannot be read: {error}") from None


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
