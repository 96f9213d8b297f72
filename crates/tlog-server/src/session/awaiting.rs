//! What a connection has brought and was not told to be durable.

use std::collections::BTreeMap;

use tlog_proto::{Generation, LogPosition, Sequence};

/// Sequences that follow each other, in one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) generation: Generation,
    pub(super) first: Sequence,
    pub(super) last: Sequence,
}

impl From<LogPosition> for Run {
    fn from(LogPosition { generation, sequence }: LogPosition) -> Self {
        Self { generation, first: sequence, last: sequence }
    }
}

impl Run {
    /// All of them, in order.
    pub(super) fn sequences(self) -> impl Iterator<Item = Sequence> {
        (self.first.0..=self.last.0).map(Sequence)
    }
}

/// A set of positions. Nearly all of a client's follow each other, so there are few runs, and adding to one takes no memory.
///
/// Invariant: under where it begins, the last sequence of each run; no two runs touch.
#[derive(Debug, Default)]
pub(super) struct Awaiting(BTreeMap<LogPosition, Sequence>);

impl Awaiting {
    /// Adds a position that is not [`Sequence`]'s last one.
    pub(super) fn insert(&mut self, position: LogPosition) {
        let Self(runs) = self;
        let LogPosition { generation, sequence } = position;
        let behind = LogPosition { sequence: sequence.next(), ..position };
        let before = runs.range_mut(..=position).next_back().filter(|(at, _)| at.generation == generation);
        match before {
            Some((_, last)) if *last >= sequence => {}
            Some((&first, last)) if last.next() == sequence => {
                *last = sequence;
                if let Some(end) = runs.remove(&behind) {
                    runs.insert(first, end);
                }
            }
            _ => {
                let end = runs.remove(&behind).unwrap_or(sequence);
                runs.insert(position, end);
            }
        }
    }

    /// Takes out everything up to and including a position, in order.
    pub(super) fn take_until(&mut self, durable: LogPosition) -> Vec<Run> {
        let Self(runs) = self;
        let mut taken = Vec::with_capacity(runs.len().min(4));
        while let Some(run) = runs.first_entry().filter(|run| *run.key() <= durable) {
            let LogPosition { generation, sequence: first } = *run.key();
            let end = run.remove();
            let last = if generation < durable.generation { end } else { end.min(durable.sequence) };
            taken.push(Run { generation, first, last });
            if last < end {
                runs.insert(LogPosition { generation, sequence: last.next() }, end);
                break;
            }
        }
        taken
    }

    /// Forgets all sequences from this one on, of whatever generation.
    pub(super) fn forget_from(&mut self, sequence: Sequence) {
        self.0.retain(|at, last| {
            *last = (*last).min(Sequence(sequence.0.saturating_sub(1)));
            at.sequence < sequence
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(LogPosition),
        Take(LogPosition),
        Forget(Sequence),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let position = (0u64..3, 0u64..20).prop_map(|(generation, sequence)| LogPosition {
            generation: Generation(generation),
            sequence: Sequence(sequence),
        });
        let step = prop_oneof![
            8 => position.clone().prop_map(Step::Insert),
            1 => position.prop_map(Step::Take),
            1 => (0u64..20).prop_map(|sequence| Step::Forget(Sequence(sequence))),
        ];
        prop::collection::vec(step, 0..60)
    }

    proptest! {
        #[test]
        fn runs_are_the_positions_that_a_plain_set_has(steps in steps()) {
            let (mut runs, mut plain) = (Awaiting::default(), BTreeSet::new());
            for step in steps {
                match step {
                    Step::Insert(position) => {
                        runs.insert(position);
                        plain.insert(position);
                    }
                    Step::Take(durable) => {
                        let later = plain.split_off(&LogPosition { sequence: durable.sequence.next(), ..durable });
                        let taken = std::mem::replace(&mut plain, later);
                        let taken_runs = runs.take_until(durable);
                        let positions: Vec<LogPosition> = taken_runs
                            .into_iter()
                            .flat_map(|run| run.sequences().map(move |sequence| (run.generation, sequence)))
                            .map(|(generation, sequence)| LogPosition { generation, sequence })
                            .collect();
                        prop_assert_eq!(positions, taken.into_iter().collect::<Vec<_>>());
                    }
                    Step::Forget(from) => {
                        runs.forget_from(from);
                        plain.retain(|position| position.sequence < from);
                    }
                }
                let touch = runs.0.iter().zip(runs.0.iter().skip(1)).any(|((a, last), (b, _))| {
                    a.generation == b.generation && last.next() >= b.sequence
                });
                prop_assert!(!touch, "{runs:?}");
            }
        }
    }
}
