//! See [`tlog_fuzz::framing`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tlog_fuzz::framing::TARGET.run(input));
