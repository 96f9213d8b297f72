//! See [`tlog_fuzz::redis_values`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tlog_fuzz::redis_values::TARGET.run(input));
