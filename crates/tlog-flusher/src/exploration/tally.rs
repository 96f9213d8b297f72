//! What runs did.

use std::fmt;

/// Sum of what a run did, to see that it explored something.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) openings: usize,
    pub(super) refused: usize,
    pub(super) acknowledged: usize,
    pub(super) wiped: usize,
    pub(super) lost: usize,
    pub(super) replaced: usize,
    pub(super) put_back: usize,
    pub(super) scrubs: usize,
    /// Records and parts that were answered as stored.
    pub(super) extras: usize,
    pub(super) pruned: usize,
    pub(super) complete: usize,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { openings, refused, acknowledged, wiped, lost, replaced, put_back, scrubs, .. } = self;
        let Self { extras, pruned, complete, .. } = self;
        write!(
            f,
            "{openings} openings, {refused} refused, {acknowledged} blocks acknowledged, {wiped} stores wiped, {lost} lost for good, {replaced} \
             openings that replaced them, {put_back} old disks put back, {scrubs} scrubs, {extras} stored without writes, {pruned} times the \
             beginning removed, {complete} runs ended complete"
        )
    }
}
