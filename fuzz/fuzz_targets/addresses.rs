//! See [`tlog_fuzz::addresses`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tlog_fuzz::addresses::TARGET.run(input));
