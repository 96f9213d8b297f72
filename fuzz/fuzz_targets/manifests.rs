//! See [`tlog_fuzz::manifests`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tlog_fuzz::manifests::TARGET.run(input));
