//! Clients that come back, and those that ask.

use super::*;

fn at(generation: u64, sequence: u64) -> LogPosition {
    LogPosition { generation: Generation(generation), sequence: Sequence(sequence) }
}

pub(super) fn returning(connection: u64, session: u64, first: u64, found: LogPosition) -> Greeting {
    Greeting { returning: Some(found), ..greeting(connection, session, first, false) }
}

const EMPTY: LogPosition = LogPosition { generation: Generation(0), sequence: Sequence(0) };

#[test]
fn a_client_that_comes_back_goes_on_and_one_that_was_replaced_by_another_is_told() {
    let mut bench = Bench::new();
    bench.connect(1, 7, 1, false);
    assert_eq!(bench.found, EMPTY);
    bench.blocks(1..=4, 1);
    bench.make_durable(2);
    bench.seen();
    bench.greet(returning(2, 7, 3, EMPTY));
    assert_eq!(bench.seen(), [Replaced(1), Accepted(2, Some(2))]);
    // What the other one has ordered is durable before the next one is let in behind it.
    bench.connect(3, 9, 5, false);
    assert_eq!(bench.seen(), [Replaced(2), Flush]);
    bench.all_durable();
    assert_eq!((bench.seen(), bench.found), (vec![Accepted(3, Some(4))], at(1, 4)));
    bench.greet(returning(4, 7, 3, EMPTY));
    assert_eq!(bench.seen(), [TakenOver { connection: 4, by: 9 }], "the other one is not disturbed");
    bench.blocks([5], 2);
    bench.greet(returning(6, 9, 5, at(1, 4)));
    assert_eq!(bench.heard(), [recv_ok(5), Accepted(6, Some(4))]);
}

#[test]
fn a_client_that_comes_back_is_refused_where_another_one_wrote_last_or_nothing_is_left() {
    let mut bench = Bench::with_history(7, 1, 1..=4);
    bench.greet(returning(1, 9, 3, at(1, 2)));
    assert_eq!(bench.seen(), [TakenOver { connection: 1, by: 7 }]);
    bench.greet(returning(2, 9, 6, at(1, 5)));
    assert_eq!(bench.seen(), [Gap { connection: 2, first: 6, next: Some(5), last_flushed: Some(4) }]);
    bench.greet(returning(3, 9, 5, at(1, 2)));
    assert_eq!(
        bench.seen(),
        [TakenOver { connection: 3, by: 7 }],
        "what lies before is not what it has written"
    );
    bench.greet(returning(4, 7, 2, at(1, 1)));
    assert_eq!(bench.seen(), [Accepted(4, Some(4))]);

    let mut empty = Bench::new();
    empty.greet(returning(1, 7, 5, at(1, 4)));
    assert_eq!(empty.seen(), [Gap { connection: 1, first: 5, next: None, last_flushed: None }]);
    empty.greet(returning(2, 7, 5, EMPTY));
    assert_eq!(empty.seen(), [Accepted(2, None)]);
}

#[test]
fn who_comes_back_with_nothing_acknowledged_does_not_write_over_what_another_one_wrote_meanwhile() {
    // Its first blocks were stored, and it did not hear of it; then another one came, wrote, and the log was opened anew.
    let mut bench = Bench::new();
    bench.connect(1, 7, 1, false);
    bench.blocks(1..=3, 1);
    bench.all_durable();
    bench.connect(2, 9, 4, false);
    bench.blocks(4..=8, 2);
    bench.all_durable();
    bench.reopen();
    for reset in [false, true] {
        bench.greet(Greeting { reset, ..returning(3, 7, 1, EMPTY) });
        assert_eq!(bench.seen(), [TakenOver { connection: 3, by: 9 }]);
    }
    // Where nothing was stored since, what was to be begun is still to be begun.
    let mut bench = Bench::with_history(7, 1, 1..=4);
    for connection in 1..=3 {
        bench.greet(returning(connection, 9, 1, at(1, 4)));
    }
    bench.blocks(1..=2, 2);
    assert_eq!(bench.positions()[4..], [(2, 1), (2, 2)]);
}

#[test]
fn asking_where_an_empty_log_ends_disturbs_nobody() {
    let mut bench = Bench::new();
    bench.connect(1, 7, 1, false);
    bench.connect(2, 9, u64::MAX, false);
    let gap = Gap { connection: 2, first: u64::MAX, next: None, last_flushed: None };
    assert_eq!(bench.seen(), [Accepted(1, None), gap]);
    bench.block(1, 1);
    assert_eq!(bench.seen(), [Appended(1, 1), recv_ok(1)]);
}

#[test]
fn a_reset_that_was_done_is_not_done_again_when_the_client_comes_back() {
    let mut bench = Bench::with_history(7, 1, 1..=4);
    let reset = |connection, returning| Greeting { returning, ..greeting(connection, 9, 2, true) };
    bench.greet(reset(1, None));
    assert_eq!((bench.seen(), bench.found), (vec![Accepted(1, None)], at(1, 4)));
    bench.greet(reset(2, Some(at(1, 4))));
    assert_eq!(
        bench.seen(),
        [Replaced(1), Accepted(2, None)],
        "nothing was stored yet: it is still to be done"
    );
    bench.blocks(2..=3, 2);
    bench.seen();
    bench.greet(reset(3, Some(at(1, 4))));
    assert_eq!(bench.seen(), [Replaced(2), Accepted(3, None)]);
    bench.blocks(2..=4, 2);
    assert_eq!(bench.positions()[4..], [(2, 2), (2, 3), (2, 4)]);
}

#[test]
fn a_reset_of_a_known_session_is_done_again_where_nothing_of_it_was_stored() {
    // The log is by the same session, from before the reset.
    let mut bench = Bench::with_history(7, 1, 1..=9);
    let reset = |connection, returning| Greeting { returning, ..greeting(connection, 7, 5, true) };
    bench.greet(reset(1, None));
    bench.greet(reset(2, Some(at(1, 9))));
    assert_eq!(bench.heard(), [Accepted(1, None), Accepted(2, None)], "nothing is called durable");
    bench.blocks(5..=6, 2);
    assert_eq!(bench.positions()[9..], [(2, 5), (2, 6)]);
}

#[test]
fn where_the_log_does_not_know_its_writer_what_comes_again_is_compared() {
    let mut bench = Bench::with_history(0, 1, 1..=4);
    bench.greet(returning(1, 9, 3, at(1, 2)));
    assert_eq!(bench.seen(), [Accepted(1, None)]);
    bench.blocks(3..=5, 1);
    assert_eq!(bench.heard(), [flush_ok([3]), flush_ok([4]), recv_ok(5)]);
    assert_eq!(bench.positions().last(), Some(&(1, 5)));

    // What differs was written by another one, who is not written over.
    let mut bench = Bench::with_history(0, 1, 1..=6);
    bench.greet(returning(1, 9, 3, at(1, 2)));
    bench.seen();
    bench.blocks(3..=4, 1);
    bench.blocks(5..=7, 2);
    assert_eq!(bench.seen(), [flush_ok([3]), flush_ok([4]), Replaced(1)]);
    assert_eq!(bench.positions().len(), 6);
    bench.greet(returning(2, 9, 5, at(1, 2)));
    assert_eq!(bench.seen(), [TakenOver { connection: 2, by: 0 }]);
}

#[test]
fn where_it_cannot_be_told_whether_the_log_is_ours_nobody_is_refused_for_what_it_looks_like() {
    let mut bench = Bench::with_history(7, 1, 1..=4);
    let uncertain = |greeting| Greeting { certain: false, ..greeting };
    bench.greet(uncertain(returning(1, 9, 3, at(1, 2))));
    bench.greet(uncertain(greeting(2, 9, 8, false)));
    bench.greet(uncertain(greeting(3, 9, u64::MAX, false)));
    assert_eq!(bench.seen(), [Uncertain(1), Uncertain(2), Uncertain(3)]);
    // Nor is anybody told an end that would count for as long as he lives; who has no session is told none.
    bench.greet(uncertain(greeting(4, 9, 5, false)));
    assert_eq!(bench.seen(), [Uncertain(4)]);
    bench.greet(uncertain(greeting(5, 0, 5, false)));
    assert_eq!(bench.seen(), [Accepted(5, Some(4))], "the first write finds out");
}

#[test]
fn the_end_that_a_client_is_told_first_is_durable_also_where_its_own_session_wrote_it() {
    // What an earlier client of the same session left: six blocks, of which the last three are not durable.
    let mut bench = Bench::with_history(3, 1, 1..=5);
    bench.connect(1, 7, 6, false);
    bench.blocks(6..=10, 2);
    bench.make_durable(7);
    bench.seen();
    for (connection, first) in [(2, 6), (3, 11)] {
        bench.connect(connection, 7, first, false);
        assert_eq!(bench.seen(), [Replaced(connection - 1), Flush], "from {first} on");
    }
    bench.all_durable();
    assert_eq!((bench.seen(), bench.found), (vec![Accepted(3, Some(10))], at(1, 10)));
    // Coming back does not wait: what it found is durable long since.
    bench.block(11, 2);
    bench.seen();
    bench.greet(returning(4, 7, 11, at(1, 10)));
    assert_eq!(bench.seen(), [Replaced(3), Accepted(4, Some(10))]);
}

#[test]
fn a_client_that_never_heard_that_it_was_accepted_has_taken_nothing_over() {
    let mut bench = Bench::new();
    bench.connect(1, 7, 1, false);
    bench.block(1, 1);
    bench.connect(2, 9, 2, false);
    assert_eq!(bench.seen().last(), Some(&Flush), "it waits until what was ordered is durable");
    bench.session.handle_gone(ConnectionId(2));
    bench.all_durable();
    bench.greet(returning(3, 7, 1, EMPTY));
    assert_eq!(bench.seen(), [Accepted(3, Some(1))]);

    // Nor have two that came one after the other, before either was answered.
    bench.block(2, 1);
    bench.connect(8, 9, 3, false);
    bench.connect(9, 10, 3, false);
    bench.session.handle_gone(ConnectionId(9));
    bench.all_durable();
    bench.seen();
    bench.greet(returning(10, 7, 2, EMPTY));
    assert_eq!(bench.seen(), [Accepted(10, Some(2))]);

    bench.connect(4, 9, 3, false);
    bench.session.handle_unheard(ConnectionId(4));
    bench.greet(returning(5, 7, 3, EMPTY));
    assert!(matches!(bench.seen()[..], [.., Accepted(5, Some(2))]));

    // One that heard it has, though it sent nothing.
    bench.connect(6, 9, 3, false);
    bench.session.handle_gone(ConnectionId(6));
    bench.seen();
    bench.greet(returning(7, 7, 3, EMPTY));
    assert_eq!(bench.seen(), [TakenOver { connection: 7, by: 9 }]);
}

#[test]
fn where_an_unknown_writer_started_over_nobody_goes_on_behind_it_by_chance() {
    let mut bench = Bench::with_history(0, 1, 1..=8);
    bench.greet(returning(1, 9, 9, at(1, 5)));
    assert_eq!(bench.seen(), [Accepted(1, Some(8))], "the same generation");
    let mut bench = Bench::with_history(0, 1, 5..=8);
    bench.connect(1, 0, 1, true);
    bench.blocks(1..=8, 2);
    bench.all_durable();
    bench.reopen();
    bench.greet(returning(2, 9, 9, at(1, 5)));
    assert_eq!(bench.seen(), [TakenOver { connection: 2, by: 0 }]);
}

#[test]
fn a_log_that_forgets_its_generations_tells_none_that_would_be_another_one_tomorrow() {
    let mut bench = Bench::with_history(0, 1, 1..=4);
    bench.session =
        Session::new(LogEnd { last: Some(Sequence(4)), ..bench.end() }, Bench::LIMITS).without_generations();
    bench.connect(1, 0, 2, true);
    bench.blocks(2..=6, 2);
    bench.all_durable();
    bench.connect(2, 9, 7, false);
    assert_eq!(bench.found, at(1, 6), "it is the second one, as far as is known here");
}
