//! See [`tlog_fuzz::format1`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tlog_fuzz::format1::TARGET.run(input));
