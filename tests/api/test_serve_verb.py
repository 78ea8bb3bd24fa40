"""`pomona serve`: the first wrong things that a person types."""

import socket

import pytest

from pomona.api.keys import read_keys
from pomona.api.template import Template, read_template
from pomona.cli.main import main
from pomona.core.errors import UserError


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ([], "Missing"),
        (["nowhere"], "nowhere is not a run folder"),
        (["{run}", "--adapter", "x"], "--adapter x"),
        (["{run}", "--adapter", "a=x", "--adapter", "a=y"], "--adapter a=y"),
        (["{run}", "--slots", "0"], "--slots 0"),
        (["{run}", "--tensor-parallel", "0"], "--tensor-parallel 0"),
        (["{run}", "--threads", "2"], "--threads with a run folder"),
        (["{pom}", "--step", "2"], "--step with a device file"),
        (["{pom}", "--tensor-parallel", "2"], "--tensor-parallel with a device file"),
        (["{run}", "--name", "a:b"], "--name a:b"),
        (["{run}", "--template-stop", "x"], "--template-stop without"),
        (["{run}", "--chat-template", "none.jinja"], "none.jinja cannot be read"),
        (["{run}", "--api-keys", "none.keys"], "none.keys cannot be read"),
        (["{run}", "--port", "99999"], "there is no port 99999"),
        (["{run}", "--host", "no.such.host.invalid"], "cannot be listened at"),
        (["{run}", "--port", "0", "--adapter", "a=nowhere"], "nowhere is no adapter"),
        (["{run}", "--port", "0", "--slots", "9000", "--context", "9000000"], "GiB for keys and values"),
        (["{run}", "--port", "0", "--speculate", "luck"], "--speculate luck"),
        (["{pom}", "--port", "0", "--instruction-set", "mmx"], "has no 'mmx'"),
    ],
    ids=str,
)
def test_one_clear_error(both, options, problem, capsys):
    words = [option.format(run=both[0], pom=both[1]) for option in options]
    assert main(["serve", *words]) == 2
    assert problem in capsys.readouterr().err


def test_a_port_that_is_taken(both, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(both[1]), "--port", port]) == 2
    assert f"127.0.0.1:{port} cannot be listened at" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "# nobody\n", "alice\n", "alice key five\n", "alice key 5 more\n"])
def test_keys_of_another_form(tmp_path, text):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(UserError, match="no key"):
        read_keys(tmp_path / "keys")


def test_a_template_of_the_operators_own(tmp_path):
    path = tmp_path / "own.jinja"
    path.write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if messages[0].role == 'tool' %}{{ raise_exception('a tool first') }}{% endif %}<assistant>"
    )
    template = read_template(path, ("<user>",))
    assert template.render([{"role": "user", "content": "Hi"}], None) == "<user>Hi<assistant>"
    with pytest.raises(ValueError, match="a tool first"):
        template.render([{"role": "tool", "content": "7"}], None)
    path.write_text("{% for %}")
    with pytest.raises(UserError, match="cannot be read"):
        read_template(path, ())
    path.write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(UserError, match="unsafe"):
        read_template(path, ())


def test_the_plain_form_is_that_of_the_terminal():
    """As `pomona.infer.chat` has it: names and colons, the system's text first."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert Template().render(messages, None) == "Be brief.\nUser: Hello\nAssistant:"
    messages += [{"role": "assistant", "content": "Hi."}, {"role": "user", "content": "More"}]
    assert Template().render(messages, None) == "Be brief.\nUser: Hello\nAssistant: Hi.\nUser: More\nAssistant:"
