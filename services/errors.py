"""What can go wrong, as a tree.  Every message says what, where, and how to fix it.

::

    NevstreamError
     ├── UsageError              what the person asked for cannot be done as asked        exit code 2
     │    └── SettingsError      a setting is wrong; names the setting and where it came from
     ├── Unavailable             the world is away or slow: keep the input, try again     exit code 3
     │    ├── JournalUnavailable
     │    └── StoreUnavailable
     │         ├── QueryTooSlow    the statement time-out ended a query: ask for less
     │         └── SchemaMissing   the database answers but is not migrated: `nevstream migrate`
     ├── PositionsMoved          another owner writes this partition: start again from the store
     ├── PortInUse               an address we were told to listen on is taken            exit code 4
     └── DataDirectoryError      the embedded database's directory cannot be used         exit code 5

A peer that is wrong is not an exception: it is a refused frame with a reason (``schemas.reasons``).
"""

from __future__ import annotations


class NevstreamError(Exception):
    """Anything this program raises on purpose; ``exit_code`` is what the command line ends with."""

    exit_code = 1


class UsageError(NevstreamError):
    exit_code = 2


class SettingsError(UsageError):
    pass


class Unavailable(NevstreamError):
    exit_code = 3


class JournalUnavailable(Unavailable):
    pass


class StoreUnavailable(Unavailable):
    pass


class QueryTooSlow(StoreUnavailable):
    pass


class SchemaMissing(StoreUnavailable):
    pass


class PositionsMoved(NevstreamError):
    pass


class PortInUse(NevstreamError):
    exit_code = 4


class DataDirectoryError(NevstreamError):
    exit_code = 5
