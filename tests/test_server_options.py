"""What the server refuses before anything is started."""

import pytest

from vargen.commands import main, serve
from vargen.server.metrics import Metrics
from vargen.server.options import KEY_VARIABLE, Options


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--host", "localhost"], "got localhost:8000, expected 127.0.0.1, 0.0.0.0, ::"),
        (["--port", "80"], "a port from 1024 to 65535"),
        (["--deadline", "inf"], "got deadline inf, expected a number"),
        (["--batch-wait", "nan"], "got batch wait nan, expected a number"),
        (["--fast", "quick"], "got fast 'quick', expected auto, off, triton"),
        (["--model", "pocket-var:dtype=int7"], "got dtype 'int7'"),
        (["--model", "pocket-var:checkpoint=nowhere.pth"], "there is no nowhere.pth"),
        (["--model", "pocket-vax"], "unknown model 'pocket-vax'"),
        (["--batching", "wild"], "got batching 'wild', expected continuous or static"),
        (["--max-replicas", "2"], "got one of min_replicas, max_replicas, models_per_replica without ray"),
        (["--api-key", "secret"], "unrecognized arguments: --api-key"),
    ],
)
def test_flags(flags, words, capsys):
    with pytest.raises(SystemExit) as ended:
        main.guarded(serve.command, flags)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert words in said
    assert len(said.splitlines()) == 1


def test_as_many_images_as_openai_allows():
    assert Options(batch_size=4).most_images == Options().most_images == 10


def test_a_key_has_no_blanks_around_it(monkeypatch, tmp_path):
    monkeypatch.setenv(KEY_VARIABLE, " k ")
    assert Options().key() == "k"
    (tmp_path / "key").write_text("from a file\n")
    assert Options(api_key_file=tmp_path / "key").key() == "from a file"
    for wrong in ("", "  ", "schl\u00fcssel"):
        monkeypatch.setenv(KEY_VARIABLE, wrong)
        with pytest.raises(ValueError, match="empty or not printable ASCII"):
            Options().key()


def test_counters_count_beyond_a_million():
    metrics = Metrics()
    metrics.forwards.add(1234567)
    metrics.forwards.add(1)
    metrics.seconds.observe(0.25)
    assert "vargen_forwards_total 1234568\n" in metrics.text()
    assert "vargen_request_seconds_sum 0.25\n" in metrics.text()
