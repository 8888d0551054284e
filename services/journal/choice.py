"""The journal that the settings name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.errors import UsageError
from services.journal.postgres import PostgresJournal
from services.settings import JournalKind, Settings

if TYPE_CHECKING:
    from services.journal.kafka import KafkaJournal


def journal_of(settings: Settings, dsn: str, client: str = "journal") -> PostgresJournal | KafkaJournal:
    """Writer and reader; ``open`` it.  ``client`` is what brokers hear this process called.

    Raises ``UsageError`` for the journal in memory: that is of one process.
    """
    journal = settings.journal
    if journal.kind is JournalKind.POSTGRES:
        return PostgresJournal(dsn, journal.partitions)
    if journal.kind is JournalKind.KAFKA:
        from services.journal.kafka import KafkaJournal

        return KafkaJournal(journal.kafka, journal.partitions, client, dsn)
    raise UsageError(f'journal.kind = "{journal.kind}" cannot join processes; set it to "postgres" or "kafka"')
