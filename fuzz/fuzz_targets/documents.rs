//! See [`tlog_fuzz::documents`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tlog_fuzz::documents::TARGET.run(input));
