//! Time passes.

use super::*;

/// Lets time pass, and answers what is sent meanwhile, with the seconds after which. None at the end: silence was noticed.
fn pass(state: &mut State<u64>, begin: Instant, seconds: u64, heard: bool) -> Vec<(u64, Option<Sent>)> {
    let end = begin + Duration::from_secs(seconds);
    let mut seen = Vec::new();
    while let Some(now) = state.poll_timeout().filter(|at| *at <= end) {
        if state.handle_time(now).is_err() {
            seen.push(((now - begin).as_secs(), None));
            break;
        }
        while let Some(sent) = poll(state, now) {
            seen.push(((now - begin).as_secs(), Some(sent)));
        }
        if heard {
            respond(state, BlockStatus::RecvOk, &[], now);
        }
    }
    seen
}

#[test]
fn a_server_that_says_nothing_gets_everything_again_and_is_left_when_it_stays_silent() {
    let now = Instant::now();
    let mut state = sent(2, now);
    let seen = pass(&mut state, now, 100, false);
    let again = |at| [(at, Some(Sent::Block(START))), (at, Some(Sent::Block(START + 1)))];
    let mut expected: Vec<_> = again(5).into();
    expected.push((7, Some(flush(START + 1))));
    expected.push((15, None));
    assert_eq!(seen, expected);
}

#[test]
fn a_block_that_is_overtaken_is_sent_again_and_one_that_only_waits_its_turn_is_not() {
    let now = Instant::now();
    let mut state = sent(3, now);
    respond(&mut state, BlockStatus::RecvOk, &[START + 1], now);
    let seen = pass(&mut state, now, 40, true);
    let at: Vec<_> =
        seen.iter().filter(|(_, sent)| *sent == Some(Sent::Block(START))).map(|(at, _)| *at).collect();
    assert_eq!(at, [5, 15, 35], "twice as long each time");
    assert!(!seen.iter().any(|(_, sent)| *sent == Some(Sent::Block(START + 2))), "{seen:?}");
}

#[test]
fn a_server_that_has_received_everything_and_waits_for_its_flush_time_is_asked_to_flush_and_not_left() {
    let now = Instant::now();
    let mut state = sent(2, now);
    respond(&mut state, BlockStatus::RecvOk, &[START, START + 1], now);
    assert_eq!(pass(&mut state, now, 7, false), []);
    let asked = state.poll_timeout().unwrap();
    state.handle_time(asked).unwrap();
    assert_eq!(poll_all(&mut state, asked), [flush(START + 1)]);
    assert!((asked - now).as_secs() == 7, "half of the patience for an answer");
    respond(&mut state, BlockStatus::ForceFlushReceived, &[], asked);
    respond(&mut state, BlockStatus::FlushOk, &[START, START + 1], asked);
    assert_eq!(pass(&mut state, asked, 1000, false), [], "it owes nothing any more");
}

#[test]
fn a_server_that_hangs_after_it_has_received_everything_is_noticed() {
    let now = Instant::now();
    let mut state = sent(2, now);
    respond(&mut state, BlockStatus::RecvOk, &[START, START + 1], now);
    let seen = pass(&mut state, now, 1000, false);
    assert_eq!(seen.first(), Some(&(7, Some(flush(START + 1)))));
    assert!(matches!(seen.last(), Some((22..=23, None))), "{seen:?}");
}

#[test]
fn a_flush_that_is_understood_and_never_done_makes_the_blocks_be_sent_again() {
    let now = Instant::now();
    let mut state = sent(1, now);
    respond(&mut state, BlockStatus::RecvOk, &[START], now);
    state.command(force_flush(START));
    assert_eq!(poll_all(&mut state, now).len(), 1);
    respond(&mut state, BlockStatus::ForceFlushReceived, &[], now);
    let seen = pass(&mut state, now, 12, true);
    let again = seen.iter().find(|(_, sent)| *sent == Some(Sent::Block(START)));
    assert!(matches!(again, Some((10..=11, _))), "{seen:?}");
}

#[test]
fn the_oldest_block_is_flushed_in_the_end_however_much_is_said_about_others() {
    let now = Instant::now();
    let mut state = sent(1, now);
    respond(&mut state, BlockStatus::RecvOk, &[START], now);
    let seen = pass(&mut state, now, 62, true);
    assert!(matches!(seen[..], [(60..=61, Some(sent))] if sent == flush(START)), "{seen:?}");
}

#[test]
fn a_server_that_reads_something_large_slowly_is_not_silent_but_one_that_takes_small_ones_is() {
    let begin = Instant::now();
    let mut state = sent(1, begin);
    let mut now = begin;
    for _ in 0..20 {
        now += PATIENCE.answer * 3 / 4;
        assert_eq!(state.handle_time(now), Ok(()));
        state.handle_partly_written(now);
    }
    assert_eq!(state.handle_time(now + PATIENCE.answer), Err(Silent(PATIENCE.answer)));

    let mut state = sent(1, begin);
    for (after, sequence) in (1..).zip(START + 1..START + 15) {
        state.push(block(sequence, 1), 1, sequence);
        let now = begin + Duration::from_secs(after);
        assert_eq!(state.handle_time(now), Ok(()));
        poll_all(&mut state, now); // the system takes it, the server need not
    }
    let at = begin + PATIENCE.answer;
    assert_eq!(state.handle_time(at), Err(Silent(PATIENCE.answer)));
}

#[test]
fn nothing_is_awaited_where_nothing_was_sent_and_a_new_connection_begins_anew() {
    let now = Instant::now();
    let mut state: State<u64> = State::new(Sequence(START), PATIENCE, now);
    state.handle_online(None, now, &mut Vec::new());
    assert_eq!(state.poll_timeout(), None);
    let mut state = sent(2, now);
    state.handle_offline();
    assert_eq!(state.poll_timeout(), None);
    let later = now + Duration::from_secs(1000);
    state.handle_online(None, later, &mut Vec::new());
    poll_all(&mut state, later);
    assert_eq!(state.handle_time(later + PATIENCE.answer - Duration::from_secs(1)), Ok(()));
}

#[test]
fn a_wait_for_the_slave_is_nothing_that_a_server_owes_at_once() {
    let now = Instant::now();
    let mut state: State<u64> = State::new(Sequence(START), PATIENCE, now);
    state.handle_online(None, now, &mut Vec::new());
    state.command(Command::WaitSlaveSync);
    assert_eq!(poll_all(&mut state, now), [Sent::Command(Command::WaitSlaveSync)]);
    assert_eq!(pass(&mut state, now, 10_000, false), []);
    assert_eq!(respond(&mut state, BlockStatus::WaitNbdSlaveSyncReceived, &[], now), [Action::SlaveSynced]);
}
