//! How many stores must answer for what.

use tlog_codec::Redundancy;

/// The quorums of a log on n = k + m stores, W of which hold an aggregation before it is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quorums {
    redundancy: Redundancy,
    write: usize,
    /// The lowest W under which something that is not known as committed may have been acknowledged; at most `write`.
    acknowledged: usize,
}

/// A write quorum that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidQuorum {
    /// Outside k < W <= n.
    #[error(
        "the write quorum must be above k = {data} and at most k + m = {total}, it is {write}: with fewer, the loss of one store could lose acknowledged data"
    )]
    OutOfRange {
        /// W asked for.
        write: usize,
        /// k.
        data: usize,
        /// n.
        total: usize,
    },
    /// Without parity every store is needed.
    #[error(
        "without parity shards every store must hold its shard: the write quorum must be {total}, it is {write}"
    )]
    NoParity {
        /// W asked for.
        write: usize,
        /// n.
        total: usize,
    },
}

impl Quorums {
    /// W = k + ceil(m / 2): as many losses are survived from the first moment as can be without waiting for the slowest.
    pub fn default_for(redundancy: Redundancy) -> Self {
        let write = redundancy.data() + redundancy.parity().div_ceil(2);
        Self { redundancy, write, acknowledged: write }
    }

    /// A write quorum of the operator's choice.
    pub fn new(redundancy: Redundancy, write: usize) -> Result<Self, InvalidQuorum> {
        let (data, total) = (redundancy.data(), redundancy.total());
        if redundancy.parity() == 0 {
            if write != total {
                return Err(InvalidQuorum::NoParity { write, total });
            }
        } else if write <= data || write > total {
            return Err(InvalidQuorum::OutOfRange { write, data, total });
        }
        Ok(Self { redundancy, write, acknowledged: write })
    }

    /// How aggregations are split.
    pub fn redundancy(&self) -> Redundancy {
        self.redundancy
    }

    /// n, the number of stores.
    pub fn total(&self) -> usize {
        self.redundancy.total()
    }

    /// k, the number of shards that give everything back.
    pub fn data(&self) -> usize {
        self.redundancy.data()
    }

    /// W: so many stores hold an aggregation when it is acknowledged.
    pub fn write(&self) -> usize {
        self.write
    }

    /// The same for a log that may hold what was acknowledged with fewer stores, under an earlier setting of W. Opening and
    /// reading then ask as many stores as that takes; what is written from now on is acknowledged with W.
    #[must_use]
    pub fn with_earlier_write(self, earlier: usize) -> Self {
        let valid = Self::new(self.redundancy, earlier).is_ok();
        Self { acknowledged: if valid { self.acknowledged.min(earlier) } else { self.acknowledged }, ..self }
    }

    /// So many stores held whatever was acknowledged, at least: W, or an earlier and lower one.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged
    }

    /// So many stores must promise before a log is opened: enough that an older writer can never reach W again and that every
    /// committed aggregation has k shards among them, and a majority, so that any two openings share a store.
    pub fn opening(&self) -> usize {
        (self.total() - self.acknowledged + self.data()).max(self.total() / 2 + 1)
    }

    /// So many stores must answer before a log of which none of them knows is begun. Up to W - k stores may have come back empty
    /// at once; one more has to say that it knows nothing, or the rest of an existing log is merely out of reach. Above
    /// [`Quorums::opening`] only where parity outweighs data, as with 1 + 3 and W = 4.
    pub fn founding(&self) -> usize {
        self.opening().max(self.losses_at_acknowledgement() + 1)
    }

    /// So many stores must answer before a reader knows the highest committed number that any writer told a client of.
    pub fn reading(&self) -> usize {
        self.total() - self.acknowledged + 1
    }

    /// So many stores may be lost for good at the moment of an acknowledgement.
    pub fn losses_at_acknowledgement(&self) -> usize {
        self.write - self.data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quorums_of_4_plus_2_are_those_of_the_documentation() {
        let quorums = Quorums::default_for(Redundancy::new(4, 2).unwrap());
        assert_eq!((quorums.write(), quorums.opening(), quorums.reading()), (5, 5, 2));
        assert_eq!(quorums.losses_at_acknowledgement(), 1);
    }

    #[test]
    fn an_earlier_and_lower_w_is_still_counted_on() {
        let strict = Quorums::new(Redundancy::new(4, 2).unwrap(), 6).unwrap();
        assert_eq!((strict.opening(), strict.reading()), (4, 1));
        let after = strict.with_earlier_write(5);
        assert_eq!((after.write(), after.acknowledged(), after.opening(), after.reading()), (6, 5, 5, 2));
        assert_eq!(after.with_earlier_write(6), after, "what is higher changes nothing");
        assert_eq!(strict.with_earlier_write(0), strict, "nor what cannot be");
    }

    #[test]
    fn any_two_openings_share_a_store_and_an_older_writer_cannot_reach_w_again() {
        for data in 1..12 {
            for parity in 0..8 {
                let redundancy = Redundancy::new(data, parity).unwrap();
                for write in 0..=data + parity + 1 {
                    let Ok(q) = Quorums::new(redundancy, write) else {
                        continue;
                    };
                    assert!(q.opening() <= q.total() && q.reading() <= q.total());
                    assert!(2 * q.opening() > q.total());
                    assert!(
                        q.total() - q.opening() < q.write(),
                        "an older writer reaches W among the others"
                    );
                    assert!(
                        q.write() + q.opening() >= q.total() + data,
                        "a committed aggregation is out of reach"
                    );
                }
                let default = Quorums::default_for(redundancy);
                assert_eq!(Quorums::new(redundancy, default.write()), Ok(default), "{data}+{parity}");
            }
        }
        let of = |write| Quorums::new(Redundancy::new(4, 2).unwrap(), write);
        assert!(of(4).is_err() && of(7).is_err() && of(5).is_ok() && of(6).is_ok());
        assert!(Quorums::new(Redundancy::new(3, 0).unwrap(), 2).is_err());
    }
}
