//! See [`tlog_fuzz::directory_files`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tlog_fuzz::directory_files::TARGET.run(input));
