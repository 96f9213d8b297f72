//! See [`tlog_fuzz::messages`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tlog_fuzz::messages::TARGET.run(input));
