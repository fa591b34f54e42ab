"""What every batch queue must do. A subclass gives the fixtures `open_queue` and `advance` of batch_cases."""

from __future__ import annotations

from tests.conformance.batch_ending import BatchEndingSuite
from tests.conformance.batch_files import BatchFilesSuite
from tests.conformance.batch_reading import BatchReadingSuite
from tests.conformance.batch_receiving import BatchReceivingSuite
from tests.conformance.batch_sourced import BatchSourcedSuite
from tests.conformance.batch_walks import BatchWalksSuite
from tests.conformance.batch_working import BatchWorkingSuite


class BatchQueueSuite(
    BatchReceivingSuite,
    BatchWorkingSuite,
    BatchEndingSuite,
    BatchReadingSuite,
    BatchFilesSuite,
    BatchSourcedSuite,
    BatchWalksSuite,
):
    """The contract of chiron.batch.contract.BatchQueue."""
