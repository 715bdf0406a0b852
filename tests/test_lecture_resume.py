"""A lecture that was interrupted goes on where it was, to the same numbers."""

import json
import re

import pytest
from command import vaefast

from vaefast import lecture
from vaefast.lecture import context as contexts

CLAIMS = "coin,samples,walks"


@pytest.fixture(autouse=True)
def one_epoch(monkeypatch):
    whole = contexts.Context.__init__

    def hurried(self, **settings):
        whole(self, **settings)
        self.epochs = 1

    monkeypatch.setattr(contexts.Context, "__init__", hurried)


def numbers(run):
    claims = json.loads((run / "summary.json").read_text())["claims"]
    return {name: {**claim, "seconds": None} for name, claim in claims.items()}


def test_an_interrupted_lecture_goes_on(tmp_path, monkeypatch):
    calm, run = tmp_path / "calm", tmp_path / "run"
    asked = ("lecture", "--quick", "--only", CLAIMS, "--seed", 3)
    vaefast(*asked, "--out", calm)

    def interrupted(context):
        context.model("tc")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(lecture.CLAIMS, "walks", interrupted)
        output = vaefast(*asked, "--out", run, code=130)
    assert f"interrupted: vaefast lecture --out {run} --resume goes on" in output
    assert list(numbers(run)) == ["coin", "samples"]
    again = vaefast("lecture", "--out", run, "--resume")
    # Claims and models that are done are not done again.
    assert "coin:" not in again
    assert "samples:" not in again
    assert "walks:" in again
    assert re.findall("training: (.*), 1 of 1", again) == ["beta-VAE"]
    assert numbers(run) == numbers(calm)
    pages = [(folder / "report.html").read_text(encoding="utf-8") for folder in (run, calm)]
    assert pages[0].count("<section") == pages[1].count("<section") == 6


def test_a_lecture_is_gone_on_with_as_it_was_asked_for(tmp_path):
    run = tmp_path / "run"
    vaefast("lecture", "--quick", "--only", "coin", "--out", run)
    for asked, text in (
        (("--seed", 4), "has --seed 0, got 4"),
        (("--overwrite",), "excludes --overwrite"),
    ):
        assert text in vaefast("lecture", "--out", run, "--resume", *asked, code=2)
    assert "--resume needs --out" in vaefast("lecture", "--resume", code=2)
    assert "holds no run to resume" in vaefast(
        "lecture", "--resume", "--out", tmp_path / "no", code=2
    )
    # More claims are added to it.
    vaefast("lecture", "--only", "samples", "--out", run, "--resume")
    assert list(numbers(run)) == ["coin", "samples"]
    (run / "parts" / "claim-coin.json").write_text("{")
    assert "claim-coin.json cannot be read" in vaefast("lecture", "--out", run, "--resume", code=2)
    config = json.loads((run / "config.json").read_text())
    config["versions"]["vaefast"] = "0.0.1"
    (run / "config.json").write_text(json.dumps(config))
    assert "was made by" in vaefast("lecture", "--out", run, "--resume", code=2)
    vaefast("lecture", "--quick", "--only", "coin", "--out", run, "--overwrite")
    assert {file.name for file in (run / "parts").iterdir()} == {"claim-coin.json"}
    (run / "config.json").write_text('{"command": "demo"}')
    assert "no lecture" in vaefast("lecture", "--out", run, "--resume", code=2)
