//! See [`tlog_fuzz::client_answers`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tlog_fuzz::client_answers::TARGET.run(input));
