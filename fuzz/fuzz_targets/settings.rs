//! See [`tlog_fuzz::settings`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tlog_fuzz::settings::TARGET.run(input));
