//! Log lines, as text or JSON, on standard error.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::settings::{LogFormat, LogSettings};

/// Begins to log. Standard output stays free for what a command prints. Once in a process; a second call does nothing.
pub fn init(settings: &LogSettings) {
    // The settings were checked, so the filter is legal; if not, too much is better than nothing.
    let filter = EnvFilter::builder().parse(&settings.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let _already = match settings.format {
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
        LogFormat::Text => {
            let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
            registry.with(lines.with_ansi(terminal)).try_init()
        }
    };
}
