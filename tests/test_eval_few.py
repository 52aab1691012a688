"""Evaluations of few images: what cannot be said is null and not infinite, and it is told why."""

import json
import math

import numpy as np
import pytest
from made_up import made_up, save_folder
from test_eval_measure import TINY

from vargen.commands import main
from vargen.commands.evaluate import command
from vargen.core.atomic import write_json
from vargen.core.trace import Trace
from vargen.eval import features, report
from vargen.eval.measure import FIGURES, measure, reference


def strict(text):
    """JSON as every other reader takes it: Python's own would take Infinity too."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def evaluate(*argv):
    main.guarded(command, [str(word) for word in argv])


def test_two_images_have_no_interval_and_the_result_is_json(tmp_path, capsys):
    few, real = (save_folder(made_up(n, size=12, seed=n), tmp_path / str(n)) for n in (2, 40))
    out = tmp_path / "r.json"
    evaluate("measure", few, "--reference", real, "--device", "cpu", "--json", out)
    result, said = strict(out.read_text()), capsys.readouterr().out
    assert result["fid"] > 0
    missing = [key for key in FIGURES if result[key] is None]
    assert missing == [key for key in FIGURES if key not in ("fid", "sfid")]
    assert "(no interval): pocket-classifier" in said
    assert "inf" not in said.replace("information", "")
    for words in (
        "2 images are too few for a standard error and an interval: left out",
        "2 images are too few for precision, recall and KID: left out",
        "2 images are too few for an Inception Score over 10 splits: left out",
    ):
        assert f"warning: {words}" in said
    (row,) = report.load([out])
    assert "half_interval" not in row
    report.write([row], tmp_path / "report")
    strict((tmp_path / "report.json").read_text())


def test_a_result_of_an_older_version_with_infinities_is_reported(tmp_path):
    old = {"images": 2, "fid": 3.0, "fid_interval": [-math.inf, math.inf], "features": "f", "reference": "r"}
    (tmp_path / "r.json").write_text(json.dumps(old | {"reference_sha256": "", "description": "d"}))
    report.write(report.load([tmp_path / "r.json"]), tmp_path / "report")
    strict((tmp_path / "report.json").read_text())


@pytest.mark.parametrize(("ours", "theirs", "which"), [(1, 9, "these images"), (9, 1, "the reference")])
def test_the_set_that_is_too_small_is_named(tmp_path, ours, theirs, which):
    real = save_folder(made_up(theirs), tmp_path / "real")
    with pytest.raises(ValueError, match=rf"got 1 image in .* \({which}\), expected at least 2"):
        figures(made_up(ours), real, tmp_path)


def figures(images, real, cache, extractor=TINY):
    with reference(real, extractor, cache) as against:
        return measure(images, extractor, against)


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (7, 30, ["7 images are too few"]),
        (30, 7, ["the reference's 7 images are too few"]),
        (7, 7, ["7 images are too few", "the reference's 7 images are too few"]),
        (8, 8, []),
    ],
)
def test_what_is_left_out_is_said_of_the_right_set(tmp_path, ours, theirs, words):
    result = figures(made_up(ours), save_folder(made_up(theirs, seed=99), tmp_path / "real"), tmp_path)
    told = [warning for warning in result["warnings"] if "precision" in warning]
    assert told == [f"{each} for precision, recall and KID: left out" for each in words]
    assert (result["precision"] is None) == (result["kid"] is None) == bool(words)


def test_what_statistics_and_features_do_not_allow_is_said(tmp_path):
    np.savez(tmp_path / "a.npz", mu=np.zeros(6), sigma=np.eye(6))
    plain = features.Extractor("plain", lambda images: {"pooled": TINY.run(images)["pooled"]}, TINY.device)
    result = figures(made_up(30), tmp_path / "a.npz", tmp_path, plain)
    for words in ("statistics without images: no precision", "no Inception Score", "both sides: no sFID"):
        assert sum(words in warning for warning in result["warnings"]) == 1
    assert [key for key in FIGURES if result[key] is not None] == ["fid", "fid_standard_error", "fid_interval"]


def test_an_inception_score_wants_two_images_a_split(tmp_path):
    real = save_folder(made_up(30, seed=99), tmp_path / "real")
    assert figures(made_up(19), real, tmp_path)["inception_score"] is None
    assert figures(made_up(20), real, tmp_path)["inception_score"] > 1


@pytest.mark.parametrize("count", [2, 9, 60])
def test_a_folder_against_itself_is_0(tmp_path, count):
    images = made_up(count)
    result = figures(images, save_folder(images, tmp_path / "real"), tmp_path)
    assert (result["fid"], result["sfid"]) == (0, 0)


def test_infinities_are_not_written(tmp_path):
    for value in (math.inf, math.nan):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "a.json", {"a": [value]})
        with pytest.raises(ValueError, match="not JSON compliant"):
            Trace(tokens_per_forward=value).json()
    assert not list(tmp_path.iterdir())
