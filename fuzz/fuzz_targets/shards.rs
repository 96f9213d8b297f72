//! See [`tlog_fuzz::shards`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tlog_fuzz::shards::TARGET.run(input));
