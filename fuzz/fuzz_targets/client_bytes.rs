//! See [`tlog_fuzz::client_bytes`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tlog_fuzz::client_bytes::TARGET.run(input));
