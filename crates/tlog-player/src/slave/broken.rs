//! The rule that a simulation breaks on purpose, to see that it is noticed: data before position.
//!
//! There is no such switch in a build for use: this is there with the feature `simulation`, and counts for the thread that asks for it
//! alone.

use std::cell::Cell;

thread_local! {
    static BROKEN: Cell<bool> = const { Cell::new(false) };
}

/// Whether the syncers of this thread record a position before they apply what leads to it.
pub fn record_before_applying(broken: bool) {
    BROKEN.set(broken);
}

pub(crate) fn is_broken() -> bool {
    BROKEN.get()
}
