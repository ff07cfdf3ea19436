"""An option stands in one place: a field of a frozen dataclass, with its kind, default, sentence and where it acts.

    @dataclass(frozen=True)
    class Crops(Options):
        group = "crops"
        dilate: float = option(0.1, number(0, 2), "growth of each axis …", idle=_some_view_is("dilated"))

Groups are put together by inheritance: `load_views` takes the fields of `ViewOptions(Loading, Crops)`, a method's
recipe those of `Recipe(Training, Loading, Crops)` and its own. So every option has one name everywhere; recipe files,
flags, `--help` and signatures are derived from the fields.

An option that cannot act in the chosen combination is refused where it was given, so that no run's record holds a value
that changed nothing; its default, which nobody asked for, is passed over. None stands for "not given".
"""

from __future__ import annotations

import difflib
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from objcrop.errors import UsageError, shown
from objcrop.option_value import Kind, value_of


@dataclass(frozen=True)
class Option:
    """What is known of an option.

    Attributes:
        name: of the field, and everywhere else but for the next two.
        key: its name in a recipe file, inside its group.
        flag: its name on the command line, without dashes.
        default: its value where none is given.
        kind: reads a value.
        says: what it is, in a sentence.
        idle: returns why it cannot act beside the others (half a sentence), None where it acts; None: it always acts.
    """

    name: str
    key: str
    flag: str
    default: Any
    kind: Kind
    says: str
    idle: Callable[[Any], str | None] | None


def option(
    default: Any,
    kind: Kind,
    says: str,
    *,
    idle: Callable[[Any], str | None] | None = None,
    key: str | None = None,
    flag: str | None = None,
) -> Any:
    """Declare a field of a group; see `Option`."""
    return field(default=default, metadata={"kind": kind, "says": says, "idle": idle, "key": key, "flag": flag})


def options_of(group: type) -> dict[str, Option]:
    """Return the options of a group, or of several put together, by name."""
    return _options_of(group)  # type: ignore[arg-type]  # classes are hashable, which mypy doubts of dataclasses


@functools.cache
def _options_of(group: type) -> dict[str, Option]:
    found = {}
    for each in fields(group):
        known = dict(each.metadata)
        key, flag = known.pop("key") or each.name, known.pop("flag") or each.name
        found[each.name] = Option(each.name, key, flag, each.default, **known)
    return found


Made = TypeVar("Made", bound="Options")


@dataclass(frozen=True)
class Options:
    """A group of options; every value is read by its option's kind as the group is made.

    Attributes:
        group: its name in a recipe file.
    """

    group: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, each in options_of(type(self)).items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, value_of(name, value, each.kind))

    def acts(self, name: str) -> bool:
        """Whether an option changes anything beside the others."""
        return self.why_idle(name) is None

    def why_idle(self, name: str) -> str | None:
        """Return why an option cannot act, None where it does."""
        idle = options_of(type(self))[name].idle
        return None if idle is None else idle(self)

    def refuse_idle(self, given: Mapping[str, Any], way_back: str = "") -> None:
        """Raise a `UsageError` where an option was given that cannot act.

        Args:
            given: options to the values that somebody asked for.
            way_back: how to take it back where a file says it, with the option's name at {}.
        """
        for name, value in given.items():
            reason = self.why_idle(name)
            if reason is not None:
                raise cannot_act(name, value, reason, way_back)

    @classmethod
    def read(cls: type[Made], given: Mapping[str, Any]) -> Made:
        """Return the group with these options, the others at their defaults.

        Raises:
            UsageError: an option that there is not, the nearest is named; a value that is none of its kind; an option
                that cannot act.
        """
        asked = {name: value for name, value in given.items() if value is not None}
        for name in asked:
            if name not in options_of(cls):
                raise unknown(name, options_of(cls))
        made = cls(**asked)
        made.refuse_idle(asked)
        return made


def cannot_act(name: str, value: Any, reason: str, way_back: str = "") -> UsageError:
    """Return the sentence for an option that cannot act."""
    return UsageError(f"{name} ({shown(value)}) cannot act here: {reason}; leave it out{way_back.format(name)}.")


def in_words(each: Option) -> str:
    """Return an option's sentence with its default, without the point."""
    if each.default is None or each.default is False:
        return each.says
    written = ",".join(f"{v:g}" for v in each.default) if isinstance(each.default, tuple) else str(each.default)
    return f"{each.says}; default: {written}"


def unknown(name: Any, known: Iterable[str], of: str = "") -> UsageError:
    """Return the sentence for an option that there is not.

    Args:
        name: what was given.
        known: the options that there are.
        of: of what, such as " of a recipe".
    """
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known are: {', '.join(sorted(known))}."
    return UsageError(f"{shown(name)} is not an option{of}: {hint}")


def home_of(group: type[Options], name: str) -> type[Options]:
    """Return the class that declares an option."""
    homes = [base for base in group.__mro__ if name in getattr(base, "__dataclass_fields__", ())]
    return homes[-1]


def takes_options(group: type[Options]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a function's signature and docstring the options of a group in place of its `**options`.

    Args:
        group: the options. The docstring's line "**options:" is replaced by an entry for each.
    """

    def derived(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        annotations = {each.name: each.type for each in fields(group)}
        more = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=o.default, annotation=annotations[name])
            for name, o in options_of(group).items()
        ]
        function.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        entries = [f"{name}: {in_words(o)}." for name, o in options_of(group).items()]
        lines = [textwrap.fill(entry, 120, initial_indent=" " * 8, subsequent_indent=" " * 12) for entry in entries]
        if function.__doc__ is not None:  # python -OO
            place = next(line for line in function.__doc__.splitlines() if line.strip().startswith("**options"))
            function.__doc__ = function.__doc__.replace(place, "\n".join(lines))
        return function

    return derived
