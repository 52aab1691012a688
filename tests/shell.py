"""Commands as a shell runs them, for tests of what they say."""

import pytest

from vargen.commands import main, sample


def run(*argv, command=sample.command):
    main.guarded(command, [str(word) for word in argv])


def refused(capsys, *argv, command=sample.command):
    """The one line in which a command refuses, with nothing in it that a terminal would act on."""
    with pytest.raises(SystemExit) as stop:
        run(*argv, command=command)
    assert stop.value.code == 2
    words = capsys.readouterr().err
    assert words.count("\n") == 1
    assert words[:-1].isprintable()
    return words
