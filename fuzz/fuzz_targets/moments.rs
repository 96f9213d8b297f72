//! See [`tlog_fuzz::moments`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tlog_fuzz::moments::TARGET.run(input));
