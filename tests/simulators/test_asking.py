from pennyweight.simulators.asking import Work
from pennyweight.simulators.histogram import Histogram
from pennyweight.simulators.jobs import row_of

OWNER = b"""# TYPE pennyweight_batch_commands histogram
pennyweight_batch_commands_bucket{le="8.0"} 3.0
pennyweight_batch_commands_sum %d
pennyweight_batch_commands_count %d
pennyweight_owner 1.0
pennyweight_store_round_trips_total %d
pennyweight_store_bytes_sent_total %.1e
"""
FRONT = b"pennyweight_owner 0.0\npennyweight_store_round_trips_total 0.0\n"


def row():
    return row_of("case", Histogram(), requests=7, seconds=1, cpu_seconds=0)


def test_work_of_several_servers_is_added_up_and_its_owner_known():
    before = Work.of([FRONT, OWNER % (100, 10, 20, 5_000)])
    after = Work.of([FRONT, OWNER % (400, 20, 35, 65_000)])
    assert (before.owners, after.owners_since(before)) == ((2,), (2,))
    assert after.mean_batch(before) == 30
    told = row()
    after.tell(told, before)
    assert (told.round_trips, told.sent_bytes) == (1.5, 200)


def test_a_book_that_changed_hands_has_owners_in_turn():
    before = Work.of([OWNER % (1, 1, 1, 1), FRONT, FRONT])
    after = Work.of([b"", OWNER % (9, 2, 3, 9), FRONT])
    assert after.owners_since(before) == (1, 2)


def test_work_that_is_not_told_is_not_made_up():
    embedded = b"pennyweight_batch_commands_sum 6\npennyweight_batch_commands_count 2\n"
    for metrics, batch in (([b""], None), ([embedded], 3.0)):
        work, told = Work.of(metrics), row()
        work.tell(told, Work())
        assert work.mean_batch(Work()) == batch
        assert (told.round_trips, told.sent_bytes) == (None, None)
