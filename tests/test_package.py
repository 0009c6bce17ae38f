import importlib
import subprocess
import sys

import pytest

import bert4rec_hf
from bert4rec_hf.commands.main import COMMANDS, main


@pytest.mark.parametrize("name", bert4rec_hf.__all__)
def test_a_name_of_the_package_is_that_of_its_room(name):
    room = importlib.import_module(f"bert4rec_hf.{bert4rec_hf.ROOMS[name]}")
    assert getattr(bert4rec_hf, name) is getattr(room, name)


def test_importing_the_package_imports_no_library():
    code = "import sys, bert4rec_hf; print({'torch', 'numpy', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_name_that_the_package_has_not_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'bert4rec_hf' has no attribute 'Recomender'"):
        bert4rec_hf.Recomender  # noqa: B018


def test_the_command_line_tells_its_commands_and_its_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed and purpose in printed for name, purpose in COMMANDS.items())
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.split() == ["0.1.0"]


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["recomend"])
    assert "invalid choice: 'recomend'" in capsys.readouterr().err


# The help of prepare lists the sources, which their readers know; it takes about a second.
@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"prepare"}))
def test_the_help_of_a_command_needs_no_heavy_library(name):
    code = (
        "import sys\n"
        "from bert4rec_hf.commands.main import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n"
        "    print({'torch', 'transformers'} & set(sys.modules), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, name, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"usage: bert4rec {name} ")
    assert done.stderr.strip() == "set()"
