"""The one exception that users see: a single line that says what was expected, what was given and what to do."""

from __future__ import annotations


class PerrinError(Exception):
    """An error the user can mend. The command line prints its text as one line and exits with code 2."""
