"""Exceptions whose message is one line for the user, and the near misses that it may name."""


class UserError(Exception):
    """Bad input. The message is one line that names the thing and the mend; the commands exit with `status`."""

    status = 2

    def _render_traceback_(self) -> list[str]:
        """The lines that IPython shows in a notebook, in place of a traceback; a script shows its traceback as ever."""
        return [f"{type(self).__name__}: {self}"]


class NonFiniteLoss(UserError):
    """The loss became infinite or not a number."""

    status = 1


def near_misses(name: str, known: list[str]) -> str:
    """Returns ``"did you mean 'a' or 'b'?"``, or the whole list of known names where none is close."""
    import difflib

    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "known: " + ", ".join(known[:40]) + (", ..." if len(known) > 40 else "")
