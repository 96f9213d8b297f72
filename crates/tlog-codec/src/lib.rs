//! tlog-codec
