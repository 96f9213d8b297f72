//! See [`tlog_fuzz::server_bytes`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tlog_fuzz::server_bytes::TARGET.run(input));
