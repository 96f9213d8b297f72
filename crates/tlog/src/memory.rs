//! How the binaries use memory.

/// Bytes of the buffer that is given back. The GNU allocator raises its bounds up to buffers of 32 MiB.
const LARGE: usize = 31 << 20;

/// Has the system's allocator, where the feature `jemalloc` is left out, keep the memory of buffers that are given back, instead of giving it back to the system at once: an
/// aggregation takes buffers of 100 KB to some MB and gives them back a moment later, and taking all of their pages anew
/// cost a fifth of a replay. To be called first.
///
/// The GNU allocator learns it from the largest buffer that was ever given back (mallopt(3), `M_MMAP_THRESHOLD`): buffers up to its length
/// come from its heaps, and of each heap it keeps twice as much. The buffer is never touched, so that it takes no memory itself. Other
/// allocators, jemalloc among them, do as they always do.
pub fn keep_large_buffers() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(LARGE)));
}
