//! How much memory an input makes the code hold.
//!
//! Counts what all threads take from the allocator and give back: one input at a time is measured.

#![allow(unsafe_code, reason = "an allocator that counts cannot be written without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering::Relaxed};

/// Bytes that are held now.
static HELD: AtomicIsize = AtomicIsize::new(0);
/// The most that were held since the input began.
static MOST: AtomicIsize = AtomicIsize::new(0);
/// Whoever comes to hold more is ended.
static BOUND: AtomicIsize = AtomicIsize::new(isize::MAX);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: everything is left to the system's allocator; counting touches no memory but three numbers.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        shrink(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grow(size);
        shrink(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(memory, layout, size) }
    }
}

fn grow(bytes: usize) {
    let bytes = isize::try_from(bytes).unwrap_or(isize::MAX);
    let held = HELD.fetch_add(bytes, Relaxed).saturating_add(bytes);
    if held > MOST.load(Relaxed) {
        MOST.fetch_max(held, Relaxed);
        // What a panic takes to tell of itself does not count.
        if held > BOUND.load(Relaxed) && !std::thread::panicking() {
            too_much(held);
        }
    }
}

fn shrink(bytes: usize) {
    HELD.fetch_sub(isize::try_from(bytes).unwrap_or(isize::MAX), Relaxed);
}

/// The memory is not taken.
#[cold]
fn too_much(held: isize) -> ! {
    let bound = BOUND.swap(isize::MAX, Relaxed);
    let over = held.saturating_sub(bound);
    eprintln!("too much memory: this input makes the code hold {over} bytes more than it may");
    std::process::abort()
}

/// The most bytes that were held at any time during `run` above what was held before. Aborts the process where that is more than `bound`.
pub(crate) fn most_during(bound: usize, run: impl FnOnce()) -> usize {
    let before = HELD.load(Relaxed);
    MOST.store(before, Relaxed);
    BOUND.store(before.saturating_add(isize::try_from(bound).unwrap_or(isize::MAX)), Relaxed);
    run();
    BOUND.store(isize::MAX, Relaxed);
    usize::try_from(MOST.load(Relaxed) - before).unwrap_or(0)
}
