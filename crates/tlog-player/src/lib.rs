//! tlog-player
