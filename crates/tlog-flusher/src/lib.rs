//! tlog-flusher
