"""The page of commands has each with all its options, and is what the command makes."""

from children import ROOT

from objcrop.command_page import command_page, commands


def test_every_command_is_there_with_every_option():
    sections = {part.split("\n", 1)[0]: part for part in command_page().split("\n## ")[1:]}
    assert list(sections) == [name for name, _ in commands()] and "objcrop bench loader" in sections
    for name, command in commands():
        for parameter in command.params:
            for word in {*parameter.opts} - {"--help"} if parameter.param_type_name == "option" else ():
                assert f"`{word}`" in sections[name], (name, word)


def test_the_page_in_the_repository_is_what_the_command_makes():
    assert (ROOT / "docs/commands.md").read_text(encoding="utf-8") == command_page()
