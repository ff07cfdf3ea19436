"""Advice that can be taken: an error names only options that the command at hand has, and only commands that exist."""

import ast
import functools
import pathlib
import re

import pytest
import typer

from objcrop.cli import app
from objcrop.errors import options_at_hand, options_named, way_out

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDERS = ("objcrop", "dali_pipes", "kernels", "ssl", "bench")
SOURCES = sorted(f for d in FOLDERS for f in (ROOT / d).rglob("*.py") if f.resolve() == f)
# Strings that are no sentence of objcrop's: arguments of other programs, and the command lines that demo prints.
OTHERS = {
    "objcrop/doctor.py": {"--always", "--dirty", "--abbrev", "--shm-size"},
    "kernels/nvrtc.py": {"--gpu-architecture", "--std"},
    "objcrop/ranks.py": {"--master-port"},  # torchrun's
    "bench/tune.py": {"--set"},  # what it found, as pretrain takes it
    "objcrop/demo.py": None,
    "objcrop/effect.py": None,
    "bench/gpu.py": None,  # commands, which tests/bench/test_gpu.py reads
    "ssl/reproduction/plan.py": None,  # commands, which tests/ssl/test_reproduce.py reads
    "ssl/reproduction/stage.py": {"--output"},
    "ssl/training/run_folder.py": {"--train", "--test"},  # of the commands that come next
    "objcrop/page.py": {"--ink", "--paper", "--soft", "--line", "--box", "--link"},  # colours of CSS
    "bench/gpu_tests.py": {"--continue-on-collection-errors"},
}
# Files whose sentences name options as they are, and the commands that can raise these: each has them all. A file that
# serves others too says it with `way_out`.
SERVES = {
    "objcrop/formats/": (
        "index",
    ),  # the demo's scenes are sound, and `propose --method import` has sentences of its own
    "objcrop/proposals/": ("propose",),
    "objcrop/box_stats.py": ("stats",),
    "ssl/export.py": ("export",),
    "ssl/evaluation/probe.py": ("probe",),
    "ssl/training/recipe.py": ("pretrain", "bench train", "bench policies"),
    "ssl/training/online_boxes.py": ("pretrain", "bench train"),
    "ssl/training/trainer.py": ("pretrain", "bench train"),  # others choose boxes and crops that fit each other
    "dali_pipes/view_plan.py": ("show", "stats", "pretrain", "bench loader", "bench train"),
    "bench/kernels.py": ("bench kernels",),
    "bench/contenders.py": ("bench loader",),
    "bench/proposals.py": ("bench proposals",),
}


def texts_of(node, but=()):
    """Yield the strings below a node with what stands in braces as X: (text, line); ids in `but` are left out."""
    pieces = {id(piece) for part in ast.walk(node) if isinstance(part, ast.JoinedStr) for piece in part.values}
    for part in ast.walk(node):
        if id(part) in but or id(part) in pieces:
            continue
        if isinstance(part, ast.JoinedStr):
            words = [v.value if isinstance(v, ast.Constant) else "X" for v in part.values]
            yield "".join(words), part.lineno
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value, part.lineno


def without_docstrings(tree):
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:] or [ast.Pass()]
    return tree


def ways_out(tree):
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "way_out"
    ]


def commands(command=None, name="objcrop"):
    """Return every command's options by its name, `objcrop bench loader` say."""
    command = command or typer.main.get_command(app)
    if hasattr(command, "commands"):
        below = [commands(command.get_command(None, word), f"{name} {word}") for word in command.commands]
        return {name: {"--help"}, **{n: o for part in below for n, o in part.items()}}
    return {name: {option for p in command.params for option in (*p.opts, *p.secondary_opts)} | {"--help"}}


COMMANDS = commands()


@functools.cache
def trees():
    return {str(f.relative_to(ROOT)): without_docstrings(ast.parse(f.read_text(encoding="utf-8"))) for f in SOURCES}


def test_the_library_names_an_option_only_where_the_command_at_hand_has_it():
    """One function serves several commands and programs without any; `way_out` chooses what fits."""
    bad = []
    for file, tree in trees().items():
        if pathlib.Path(file).name.startswith("cli") or (others := OTHERS.get(file, set())) is None:
            continue
        serves = next((names for start, names in SERVES.items() if file.startswith(start)), ())
        if serves:
            others = others | set.intersection(*(COMMANDS[f"objcrop {name}"] for name in serves))
        inside = {id(part) for call in ways_out(tree) for part in ast.walk(call)}
        bad += [f"{file}:{line}: {text}" for text, line in texts_of(tree, inside) if options_named(text) - others]
    assert not bad, "say it with way_out, or name the parameter:\n" + "\n".join(dict.fromkeys(bad))


def test_the_last_way_out_names_no_option():
    for file, tree in trees().items():
        for call in ways_out(tree):
            said = "".join(text for text, _ in texts_of(call.args[-1]))
            assert len(call.args) > 1 and not options_named(said), f"{file}:{call.lineno}: {said}"


def test_each_options_and_commands_named_exist():
    """Those in `objcrop …` are that command's; a way out's are of some command."""
    everything = set().union(*COMMANDS.values())
    for file, tree in trees().items():
        for text, line in texts_of(tree):
            for quoted in re.findall(r"`(objcrop[^`]*)`", text):
                words = quoted.split()
                name = next((n for n in sorted(COMMANDS, key=len, reverse=True) if quoted.startswith(n)), None)
                known = name is not None and (name in (quoted, "objcrop") or len(words) > len(name.split()) - 1)
                options = {w.split("=")[0] for w in words if w.startswith("--")}
                assert known and (name == "objcrop" or options <= COMMANDS[name]), f"{file}:{line}: `{quoted}`"
        for call in ways_out(tree):
            named = {option for text, _ in texts_of(call) for option in options_named(text)}
            assert named <= everything, f"{file}:{call.lineno}: {named - everything}"


def test_the_command_line_names_a_commands_own_options():
    """In cli*.py a function is a command: what its strings name, it has."""
    for file, tree in trees().items():
        if not pathlib.Path(file).name.startswith("cli"):
            continue
        for function in tree.body:
            if not isinstance(function, ast.FunctionDef):
                continue
            name = function.name.replace("_", "-")
            own = COMMANDS.get(f"objcrop {name}", COMMANDS.get(f"objcrop {name.replace('bench-', 'bench ', 1)}"))
            if own is None:
                continue
            for statement in function.body:
                for text, line in texts_of(statement):
                    assert options_named(text) <= own, f"{file}:{line}: {text}"


def test_way_out_takes_the_first_that_the_command_has():
    ways = ("raise --max-bad", "give --root", "index again with `objcrop index --verify`")
    assert way_out(*ways) == ways[0]  # a program that uses the library
    for options, expected in (({"--max-bad"}, 0), ({"--root", "--seed"}, 1), (set(), 2)):
        token = options_at_hand.set(frozenset(options))
        assert way_out(*ways) == ways[expected]
        options_at_hand.reset(token)


@pytest.mark.parametrize(
    ("words", "says", "not_says"),
    [
        (("stats", "c.arrow"), "--root", None),
        (("probe", "x.pt", "--train", "c.arrow", "--test", "c.arrow"), "index the images", "--root"),
        (("join", "c.arrow", "c.arrow", "-o", "o.arrow"), "index the images", "--root"),
        (("bench", "loader", "--catalog", "c.arrow"), "index the images", "--root"),
    ],
)
def test_moved_images(tmp_path, monkeypatch, capsys, words, says, not_says):
    from PIL import Image

    from objcrop.cli import main
    from objcrop.formats import index

    (tmp_path / "old").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "old" / "a.png")
    index(tmp_path / "old")[0].save(tmp_path / "c.arrow")
    (tmp_path / "old").rename(tmp_path / "new")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(list(words))
    said = capsys.readouterr().err
    assert says in said and (not_says is None or not_says not in said)
