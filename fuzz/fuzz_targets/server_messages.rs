//! See [`tlog_fuzz::server_messages`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tlog_fuzz::server_messages::TARGET.run(input));
