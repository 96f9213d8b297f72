//! tlog-crypto
