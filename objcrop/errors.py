"""The two ways objcrop fails: a sentence each, an exit code each (1 failed, 2 wrong use)."""

from __future__ import annotations


class ObjcropError(Exception):
    """Something went wrong; the message is one sentence that names the file, row or option and the way out.

    The command line prints the sentence without a traceback and exits with `exit_code`.
    """

    exit_code = 1


class UsageError(ObjcropError):
    """The call itself was wrong: an unknown name, an option out of range, options that exclude each other."""

    exit_code = 2


def one_of(value: str, names: object, what: str) -> str:
    """Return `value` when it is one of `names`, else raise a `UsageError` that lists them.

    Args:
        value: what the user gave.
        names: the names allowed (any iterable of strings).
        what: the option's name, as the user typed it.
    """
    known = list(names)  # type: ignore[call-overload]
    if value not in known:
        raise UsageError(f"{what} is '{value}', but it must be one of: {', '.join(known)}.")
    return value


def refuse_without_gpu(device: str) -> None:
    """Raise a `UsageError` where `device` is not "cpu" and PyTorch finds no GPU."""
    import torch

    if device != "cpu" and not torch.cuda.is_available():
        raise UsageError(f"device is '{device}', but PyTorch finds no GPU here; pass --device cpu (device='cpu').")
