//! See [`tlog_fuzz::redis_answers`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tlog_fuzz::redis_answers::TARGET.run(input));
